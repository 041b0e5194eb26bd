"""Beam search against exhaustive search, and the rules that every caption obeys."""

import itertools

import pytest
import torch
from tiny_decoders import CHANNELS, KINDS, POSITIONS, VOCAB_SIZE, Table, decoder

from tarazu.captions.data.vocabulary import EOS, PAD, SOS
from tarazu.captions.decoding.beam_search import beam_search, greedy
from tarazu.captions.decoding.ensemble import Ensemble
from tarazu.captions.decoding.horizontal_flip import HorizontalFlip
from tarazu.captions.decoding.sampling import sample
from tarazu.captions.model.captioning_model import ImageCaptioningModel
from tarazu.captions.model.decoders import make_decoder

IMAGES = torch.zeros(3, 1)


def exhaustive_search(table: Table, max_words: int, length_penalty: float):
    """Every caption of a tiny vocabulary with its score, best first."""
    words = range(4, table.logits.shape[0])
    logp = torch.log_softmax(table.logits, 2)
    captions = []
    for length in range(1, max_words + 1):
        for sentence in itertools.product(words, repeat=length):
            line = (SOS, SOS, *sentence, EOS)
            first = logp[1, SOS, line[2]]  # the table starts as if <sos> had come before <sos>
            rest = sum(
                logp[line[i - 2] if i > 3 else SOS, line[i - 1], line[i]]
                for i in range(3, len(line))
            )
            captions.append((float(first + rest) / (length + 1) ** length_penalty, list(sentence)))
    return sorted(captions, reverse=True)


@pytest.mark.parametrize("length_penalty", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_a_wide_beam_finds_what_exhaustive_search_finds(seed, length_penalty):
    table = Table(7, seed)
    best = exhaustive_search(table, 4, length_penalty)
    by_image = beam_search(table, IMAGES, 3**4 + 3**3 + 3**2 + 3, 4, length_penalty)
    assert len(by_image) == 3
    for hypotheses in by_image:
        assert [h.token_ids for h in hypotheses] == [words for _, words in best]
        assert [h.score for h in hypotheses] == pytest.approx(
            [score for score, _ in best], abs=1e-4
        )


@pytest.mark.parametrize("seed", range(5))
def test_greedy_is_argmax(seed):
    table = Table(9, seed)
    before, token, words = torch.tensor([1]), torch.tensor([SOS]), []
    for position in range(6):
        logits = table.logits[before, token].clone()[0]
        logits[[PAD, SOS, 3] + ([EOS] if position == 0 else [])] = float("-inf")
        before, token = token, logits.argmax().view(1)
        if token == EOS:
            break
        words.append(int(token))
    assert [s.token_ids for s in greedy(table, IMAGES, 6)] == [words] * 3


@pytest.mark.parametrize("kind", KINDS)
def test_captions_are_never_empty_and_have_no_special_tokens(kind):
    model, features = decoder(kind), torch.randn(5, POSITIONS, CHANNELS)
    with torch.no_grad():
        model.output.bias[:4] += 50  # special tokens are most probable
    for hypotheses in beam_search(model, features, 4, 6):
        assert 1 <= len(hypotheses) <= 4 and len({tuple(h.token_ids) for h in hypotheses}) == len(
            hypotheses
        )
        assert all(1 <= len(h.token_ids) <= 6 and min(h.token_ids) > 3 for h in hypotheses)
        assert [h.score for h in hypotheses] == sorted((h.score for h in hypotheses), reverse=True)


def test_dead_beams_are_not_repeated():
    """With one word there is one caption of each length, however wide the beam."""
    hypotheses = beam_search(Table(5, 0), IMAGES, 8, 3)[0]
    assert sorted(h.token_ids for h in hypotheses) == [[4], [4, 4], [4, 4, 4]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("beams", [1, 3])
def test_a_caption_is_the_same_alone_and_in_a_batch(kind, beams):
    model, features = decoder(kind), torch.randn(6, POSITIONS, CHANNELS)
    together = beam_search(model, features, beams, 8)
    for i in range(6):
        alone = beam_search(model, features[i : i + 1], beams, 8)[0]
        assert [h.token_ids for h in alone] == [h.token_ids for h in together[i]]


def test_a_wider_beam_finds_better_captions_on_average():
    scores = dict.fromkeys((1, 3, 10), 0.0)
    for seed in range(12):
        for beams in scores:
            scores[beams] += beam_search(Table(12, seed), IMAGES[:1], beams, 6)[0][0].score
    assert scores[1] < scores[3] < scores[10]


def test_no_trigram_is_repeated():
    loop = Table(7, 3)
    loop.logits[:, :, EOS] = -20.0
    assert any(
        len({tuple(s.token_ids[i : i + 3]) for i in range(8)}) < 8 for s in greedy(loop, IMAGES, 10)
    )
    for hypotheses in beam_search(loop, IMAGES, 3, 30, block_trigrams=True):
        for h in hypotheses:
            trigrams = [tuple(h.token_ids[i : i + 3]) for i in range(len(h.token_ids) - 2)]
            assert len(set(trigrams)) == len(trigrams)


def test_an_ensemble_of_one_model_twice_is_that_model():
    model, features = decoder("show_attend_tell"), torch.randn(4, POSITIONS, CHANNELS)
    both = beam_search(Ensemble([model, model]), features, 3, 8)
    assert [[h.token_ids for h in hs] for hs in both] == [
        [h.token_ids for h in hs] for hs in beam_search(model, features, 3, 8)
    ]


def test_an_ensemble_averages_log_probabilities():
    members, features = (
        [decoder(kind) for kind in ("show_and_tell", "show_attend_tell", "transformer")],
        torch.randn(2, POSITIONS, CHANNELS),
    )
    ensemble = Ensemble(members)
    logp, _, alpha = ensemble.step(ensemble.start(features), torch.full((2,), SOS))
    alone = [
        torch.log_softmax(m.step(m.start(features), torch.full((2,), SOS))[0], 1) for m in members
    ]
    torch.testing.assert_close(logp, torch.stack(alone).mean(0))
    torch.testing.assert_close(alpha.sum(1), torch.ones(2))
    torch.testing.assert_close(
        ensemble.forward_teacher_forced(features, torch.full((2, 1), SOS))[0][:, 0], logp
    )


def test_samples_follow_the_model():
    table = Table(6, 1)
    torch.manual_seed(0)
    drawn = sample(table, torch.zeros(20_000, 1), 3)
    assert (drawn[:, 0] == SOS).all() and ((drawn == EOS).sum(1) == 1).all()
    probabilities = torch.softmax(table.logits[1, SOS], 0)
    probabilities[[PAD, SOS, EOS, 3]] = 0
    frequencies = torch.bincount(drawn[:, 1], minlength=6) / len(drawn)
    torch.testing.assert_close(frequencies, probabilities / probabilities.sum(), atol=0.02, rtol=0)
    after = (drawn == EOS).int().cumsum(1).bool() & (drawn != EOS)
    assert (drawn[after] == PAD).all()


@pytest.mark.parametrize("seed", range(6))
def test_later_stopping_is_never_worse(seed):
    full, ahead = (
        beam_search(Table(9, seed), IMAGES[:1], 2, 12, early_stopping=stop)[0]
        for stop in ("full", "ahead")
    )
    assert ahead[0].score >= full[0].score and len(ahead) == len(full) == 2


def test_ahead_waits_for_a_better_long_caption():
    """Two short captions end early; a much more probable long one is still growing."""
    soon = torch.full((8, 8), -20.0)
    soon[SOS, 4], soon[SOS, 5], soon[4, EOS], soon[5, EOS] = -1.2, -1.3, -1.0, -1.0
    soon[SOS, 6], soon[6, 7], soon[7, 6], soon[7, EOS] = -1.1, -0.01, -0.3, -0.9
    table = Table(8, 0)
    table.logits = soon.expand(8, 8, 8).clone()
    short, long = (
        beam_search(table, IMAGES[:1], 2, 8, early_stopping=stop)[0][0]
        for stop in ("full", "ahead")
    )
    assert len(long.token_ids) > len(short.token_ids) and long.score > short.score


@pytest.mark.parametrize("kind", KINDS)
def test_image_state_depends_on_the_image_alone(kind):
    model, features = decoder(kind), torch.randn(2, POSITIONS, CHANNELS)
    state = model.start(features)
    for token in (SOS, 5, 7):
        before, (_, state, _) = state, model.step(state, torch.full((2,), token))
        assert all(torch.equal(before[i], state[i]) for i in model.image_state_indices)
    assert model.input_kind == "pooled" or len(model.image_state_indices) == 2


class Grid(torch.nn.Conv2d):
    """The smallest encoder: each position of images (B, 3, 3, 3) by itself."""

    def forward(self, pixels):
        return super().forward(pixels.permute(0, 3, 1, 2)).flatten(2).transpose(1, 2)


@pytest.mark.parametrize("kind", ["show_and_tell", "show_attend_tell", "transformer"])
def test_flip_tta_gives_an_image_and_its_mirror_image_the_same_logits(kind):
    """The attention is mirrored as well. Without test-time augmentation the logits differ."""
    torch.manual_seed(0)
    model = ImageCaptioningModel(
        Grid(3, CHANNELS, 1), make_decoder(KINDS[kind], VOCAB_SIZE, CHANNELS, 9)
    ).eval()
    pixels, tokens = torch.rand(4, 3, 3, 3) * 9, torch.tensor([[SOS, 5, 6, 7]] * 4)
    both = Ensemble([model, HorizontalFlip(model)])
    with torch.no_grad():
        (logits, alpha), (flipped_logits, flipped_alpha) = (
            both.forward_teacher_forced(images, tokens) for images in (pixels, pixels.flip(2))
        )
        stepped = both.step(both.start(pixels), tokens[:, 0])[0]
        single = [
            model.forward_teacher_forced(images, tokens)[0] for images in (pixels, pixels.flip(2))
        ]
    torch.testing.assert_close(logits, flipped_logits)
    torch.testing.assert_close(stepped, logits[:, 0])
    if alpha is not None:
        mirrored = alpha.unflatten(-1, (3, 3)).flip(-1).flatten(-2)
        torch.testing.assert_close(mirrored, flipped_alpha)
    if kind == "transformer":  # which has position embeddings
        assert not torch.allclose(*single)
