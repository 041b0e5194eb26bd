"""The training losses against the same formulas written out by hand."""

import pytest
import torch
from tiny_decoders import CHANNELS, KINDS, POSITIONS, VOCAB_SIZE, decoder
from torch.nn import functional as F

from tarazu.captions.data.vocabulary import EOS, PAD, SOS, SPECIALS, UNK, Vocabulary
from tarazu.captions.decoding.constraints import mask_forbidden
from tarazu.captions.decoding.sampling import sample
from tarazu.captions.encoder.efficientnet import ENCODER_CONFIGS, EfficientNet
from tarazu.captions.model.captioning_model import ImageCaptioningModel
from tarazu.captions.settings import SelfCritical, ShowAndTell, ShowAttendTell
from tarazu.captions.training import objective
from tarazu.captions.training.cider_reward import CiderReward
from tarazu.captions.training.objective import cross_entropy_loss, self_critical_loss
from tarazu.engine.dropout import without_dropout

TOKENS = torch.tensor([[SOS, 5, 6, 7, EOS], [SOS, 8, EOS, PAD, PAD], [SOS, 5, 9, EOS, PAD]])
FEATURES = torch.randn(3, POSITIONS, CHANNELS, generator=torch.Generator().manual_seed(1))
ENCODER = EfficientNet(ENCODER_CONFIGS["efficientnet-lite0"], (127.0,) * 3, (128.0,) * 3)
VOCABULARY = Vocabulary(SPECIALS + tuple("abcdefg"), 1, 6)
CAPTIONS = torch.tensor([VOCABULARY.encode(list(text)) for text in ("abcd", "efg", "ggb")])
CPU = torch.device("cpu")


def captioner(kind, train=True, feature_dropout=0.0):
    """A model whose decoder has no dropout."""
    model = ImageCaptioningModel(ENCODER, decoder(kind), feature_dropout)
    for layer in model.decoder.modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.p = 0.0
    return model.train(train)


def small_reward():
    return CiderReward([[list("abcd")], [list("efg")], [list("ggb")]], VOCABULARY, CPU)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_does_not_change_the_loss(kind):
    model, settings = captioner(kind, False), ShowAndTell()
    batched = cross_entropy_loss(model, FEATURES, TOKENS, settings, 0.0).total
    alone = sum(
        cross_entropy_loss(
            model, FEATURES[i : i + 1], TOKENS[i : i + 1, :width], settings, 0.0
        ).total
        for i, width in enumerate((5, 3, 4))
    )
    torch.testing.assert_close(batched, alone, atol=1e-4, rtol=1e-5)
    padded = F.pad(TOKENS, (0, 4), value=PAD)
    with_padding = cross_entropy_loss(model, FEATURES, padded, settings, 0.0).total
    torch.testing.assert_close(with_padding, batched, atol=1e-4, rtol=1e-5)


def test_label_smoothing_equals_pytorchs():
    model = captioner("show_and_tell")
    loss = cross_entropy_loss(model, FEATURES, TOKENS, ShowAndTell(label_smoothing=0.2), 0.0)
    logits, labels = model(FEATURES, TOKENS[:, :-1]).flatten(0, 1), TOKENS[:, 1:].flatten()
    plain = F.cross_entropy(logits, labels, ignore_index=PAD, reduction="sum")
    smoothed = F.cross_entropy(
        logits, labels, ignore_index=PAD, label_smoothing=0.2, reduction="sum"
    )
    torch.testing.assert_close(loss.total, plain)
    torch.testing.assert_close(loss.total + loss.penalty, smoothed)


def test_doubly_stochastic_penalty_equals_the_papers_formula():
    settings, model = ShowAttendTell(doubly_stochastic=0.5), captioner("show_attend_tell")
    loss = cross_entropy_loss(model, FEATURES, TOKENS, settings, 0.0)
    alphas = model.forward_teacher_forced(FEATURES, TOKENS[:, :-1])[1]
    by_hand = sum(
        (1 - alphas[i, :steps].sum(0)).square().sum() for i, steps in enumerate((4, 2, 3))
    )
    torch.testing.assert_close(loss.penalty, 0.5 * by_hand)


def test_regularisers_are_off_in_eval_mode():
    model = captioner("show_attend_tell", False)
    heavy = ShowAttendTell(
        dropout=0.5, word_dropout=0.9, scheduled_sampling=0.9, label_smoothing=0.5
    )
    loss = cross_entropy_loss(model, FEATURES, TOKENS, heavy, 1.0)
    plain = cross_entropy_loss(model, FEATURES, TOKENS, ShowAttendTell(), 0.0)
    assert loss.penalty is None
    torch.testing.assert_close(loss.total, plain.total)


def test_word_dropout_and_scheduled_sampling():
    torch.manual_seed(0)
    model = captioner("transformer")
    inputs = torch.tensor([[SOS, 5, 6, 7, 8, 9, PAD]]).repeat(400, 1)
    features = FEATURES[:1].repeat(400, 1, 1)

    def corrupted(settings, fraction):
        return objective._corrupt_inputs(model, features, inputs, settings, fraction)

    dropped = corrupted(ShowAndTell(word_dropout=0.25), 0.0)
    assert 0.2 < (dropped[:, 1:6] == UNK).float().mean() < 0.3
    assert (dropped[:, 0] == SOS).all() and (dropped[:, 6] == PAD).all()
    assert ((dropped == inputs) | (dropped == UNK)).all()

    settings = ShowAndTell(scheduled_sampling=0.5)
    assert torch.equal(corrupted(settings, 0.0), inputs)
    sampled = corrupted(settings, 1.0)
    # Some samples equal the token that they replace.
    assert 0.3 < (sampled[:, 1:6] != inputs[:, 1:6]).float().mean() < 0.5
    assert (sampled[:, 0] == SOS).all() and (sampled[:, 6] == PAD).all()
    assert not (sampled[:, 1:] == SOS).any()


def test_self_critical_training_raises_the_reward():
    torch.manual_seed(0)
    assert len(VOCABULARY) == VOCAB_SIZE
    references = [["abcd", "abc"], ["efge", "efg"], ["ggb", "ggba"]]
    captions = torch.tensor([VOCABULARY.encode(list(texts[0])) for texts in references])
    reward = CiderReward([[list(t) for t in texts] for texts in references], VOCABULARY, CPU)
    settings = SelfCritical(from_epoch=0, samples=8, sample_fraction=1.0)
    model = captioner("show_and_tell")
    optimizer = torch.optim.Adam(model.decoder.parameters(), 0.01)

    def mean_reward():
        samples = sample(model, FEATURES.repeat_interleave(40, 0), 6)
        return reward(torch.arange(3).repeat_interleave(40), samples).mean()

    before = mean_reward()
    for _ in range(60):
        loss = self_critical_loss(model, FEATURES, captions, torch.arange(3), reward, settings, 6)
        optimizer.zero_grad()
        (loss.total + loss.penalty).backward()
        optimizer.step()
    assert mean_reward() > 2 * before
    assert loss.total > 0  # the reported loss stays the cross-entropy


def test_shared_images_keep_the_weight_of_the_reward_to_the_cross_entropy():
    model, reward, losses = captioner("transformer"), small_reward(), []
    settings = SelfCritical(samples=3, sample_fraction=1.0, likelihood=0.3)
    shared = (CAPTIONS.repeat(2, 1), (torch.arange(3).repeat(2),))
    for tokens, image_index in ((CAPTIONS, ()), shared):
        torch.manual_seed(0)
        loss = self_critical_loss(
            model, FEATURES, tokens, torch.arange(3), reward, settings, 6, *image_index
        )
        losses.append(torch.stack([loss.total, loss.total + loss.penalty]))
    torch.testing.assert_close(losses[1], 2 * losses[0])


def test_sample_log_probs_are_those_of_the_sampling_distribution():
    """Forbidden tokens have no probability and no gradient."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, VOCAB_SIZE, generator=generator).requires_grad_()
    # With three words at most, the end of the first caption is forced.
    samples = torch.tensor([[5, 6, 7, EOS], [8, EOS, PAD, PAD]])
    log_probs = objective._sample_log_probs(logits, samples, 3)
    for row in range(2):
        for position, token in enumerate(samples[row].tolist()):
            allowed = mask_forbidden(logits[row : row + 1, position], position, 3)
            expected = torch.softmax(allowed, 1)[0, token].log()
            if token == PAD:
                expected = torch.zeros(())
            torch.testing.assert_close(log_probs[row, position], expected)
    assert log_probs[0, 3] == 0
    (grad,) = torch.autograd.grad(log_probs.sum(), logits)
    assert grad[0, :3].abs().sum() > 0 and not grad[0, 3].any() and not grad[1, 2:].any()
    assert not grad[:, :, [PAD, SOS, UNK]].any() and not grad[:, 0, EOS].any()


def test_feature_dropout_drops_a_channel_at_all_positions_and_only_in_training():
    model = captioner("show_attend_tell", feature_dropout=0.4)
    ones = torch.ones(50, POSITIONS, CHANNELS)
    features = model.encode_images(ones)
    assert torch.equal(features, features[:, :1].expand_as(features))
    assert 0.3 < (features == 0).float().mean() < 0.5
    assert features.max() == pytest.approx(1 / 0.6)
    with without_dropout(model):  # as captions are sampled
        assert model.encode_images(ones) is ones
    assert model.eval().encode_images(ones) is ones


@pytest.mark.parametrize("kind", ["tied_teller", "tied_attention", "tied_plain", "sinusoidal"])
def test_tied_embeddings_are_one_matrix(kind):
    model = decoder(kind)
    assert model.output.weight is model.embedding.weight
    shape = (VOCAB_SIZE, model.embedding.embedding_dim)
    assert sum(parameter.shape == shape for parameter in model.parameters()) == 1


@pytest.mark.parametrize("feature_dropout", [0.0, 0.6])
def test_the_gradient_may_pass_through_dropout_that_sampling_does_not_use(feature_dropout):
    """The samples are the same; the loss differs only where there is dropout."""
    model = captioner("show_attend_tell", feature_dropout=feature_dropout)
    reward, losses = small_reward(), []
    for dropout in (False, True):
        settings = SelfCritical(samples=3, sample_fraction=1.0, likelihood=0.3, dropout=dropout)
        torch.manual_seed(0)
        loss = self_critical_loss(model, FEATURES, CAPTIONS, torch.arange(3), reward, settings, 6)
        losses.append(loss.total + loss.penalty)
    assert torch.allclose(*losses) is (feature_dropout == 0.0)
