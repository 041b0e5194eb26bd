"""Properties of every decoder."""

import pytest
import torch
from tiny_decoders import CHANNELS, KINDS, POSITIONS, VOCAB_SIZE, decoder

from tarazu.captions.data.vocabulary import EOS, PAD, SOS
from tarazu.captions.model.decoders.transformer import causal_mask, padding_mask, sinusoids

every = pytest.mark.parametrize("kind", KINDS)


def inputs(seed=0, batch=3, length=7):
    torch.manual_seed(seed)
    tokens = torch.randint(4, VOCAB_SIZE, (batch, length))
    tokens[:, 0] = SOS
    return torch.randn(batch, POSITIONS, CHANNELS), tokens


@every
def test_teacher_forcing_equals_decoding_token_by_token(kind):
    model, (features, tokens) = decoder(kind), inputs()
    logits, alphas = model.forward_teacher_forced(features, tokens)
    state = model.start(features)
    for t in range(tokens.shape[1]):
        step, state, alpha = model.step(state, tokens[:, t])
        torch.testing.assert_close(step, logits[:, t], atol=1e-5, rtol=1e-4)
        if alphas is not None:
            torch.testing.assert_close(alpha, alphas[:, t], atol=1e-5, rtol=1e-4)
        assert all(len(tensor) == len(tokens) for tensor in state)
    assert torch.equal(model(features, tokens), logits) and logits.shape == (
        *tokens.shape,
        VOCAB_SIZE,
    )


@every
def test_a_later_token_changes_nothing_before_it(kind):
    model, (features, tokens) = decoder(kind), inputs()
    changed = tokens.clone()
    changed[:, 4:] = torch.randint(4, VOCAB_SIZE, changed[:, 4:].shape)
    assert not torch.equal(changed, tokens)
    a, b = model(features, tokens), model(features, changed)
    assert torch.equal(a[:, :4], b[:, :4]) and not torch.allclose(a[:, 4:], b[:, 4:])


@every
def test_a_row_is_independent_of_its_batch_and_padding(kind):
    model, (features, tokens) = decoder(kind), inputs()
    padded = torch.cat([tokens[:1, :4], torch.full((1, 3), PAD)], 1)
    together = model(features, torch.cat([padded, tokens[1:]]))
    torch.testing.assert_close(
        together[:1, :4], model(features[:1], tokens[:1, :4]), atol=1e-5, rtol=1e-4
    )


@every
def test_the_logits_depend_on_the_image(kind):
    model, (features, tokens) = decoder(kind), inputs()
    assert (model(features, tokens) - model(features + 1, tokens)).abs().max() > 1e-3


@every
def test_attention_is_a_distribution_over_positions(kind):
    model, (features, tokens) = decoder(kind), inputs()
    alphas = model.forward_teacher_forced(features, tokens)[1]
    if model.input_kind == "pooled":
        assert alphas is None
        return
    assert alphas.shape == (*tokens.shape, POSITIONS) and alphas.min() >= 0
    torch.testing.assert_close(alphas.sum(2), torch.ones(tokens.shape), atol=1e-5, rtol=0)


@every
def test_every_parameter_learns(kind):
    """An unused parameter (such as a bias before a softmax) would fail the proof of training."""
    model, (features, tokens) = decoder(kind).train(), inputs(batch=4)
    for part in model.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    loss = torch.nn.functional.cross_entropy(
        model(features, tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()
    )
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 1e-9, name


@every
def test_it_can_memorise_a_batch(kind):
    model, (features, tokens) = decoder(kind).train(), inputs(batch=4, length=6)
    for part in model.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for _ in range(150):
        loss = torch.nn.functional.cross_entropy(
            model(features, tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()
        )
        optimizer.zero_grad(), loss.backward(), optimizer.step()
    assert loss < 0.1


def test_masks_are_true_where_attention_is_not_allowed():
    tokens = torch.tensor([[SOS, 5, EOS, PAD]])
    assert padding_mask(tokens).tolist() == [[False, False, False, True]]
    expected = [[0, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 1], [0, 0, 0, 1]]
    assert causal_mask(tokens)[0, 0].int().tolist() == expected


def test_sinusoids_equal_the_papers_formula():
    table = sinusoids(10, 8)
    assert table.shape == (10, 8) and torch.equal(table[0], torch.tensor([0.0, 1.0] * 4))
    torch.testing.assert_close(table[3, 2], torch.sin(torch.tensor(3 / 10000 ** (2 / 8))))
