"""Beam search against all there is, and what no decoding may do."""

import itertools

import pytest
import torch
from scenes import CHANNELS, KINDS, PLACES, WORDS, Table, decoder

from tarazu.captions.data.vocabulary import EOS, PAD, SOS
from tarazu.captions.decoding.beam_search import beam_search, greedy
from tarazu.captions.decoding.ensemble import Ensemble
from tarazu.captions.decoding.horizontal_flip import HorizontalFlip
from tarazu.captions.decoding.sampling import sample
from tarazu.captions.model.captioning_model import ImageCaptioningModel
from tarazu.captions.model.decoders import make_decoder

PICTURES = torch.zeros(3, 1)


def everything(table: Table, max_words: int, power: float):
    """Every sentence of a tiny language with its score, best first."""
    words = range(4, table.logits.shape[0])
    logp = torch.log_softmax(table.logits, 2)
    found = []
    for length in range(1, max_words + 1):
        for sentence in itertools.product(words, repeat=length):
            line = (SOS, SOS, *sentence, EOS)
            first = logp[1, SOS, line[2]]  # the table starts as if <sos> had come before <sos>
            rest = sum(
                logp[line[i - 2] if i > 3 else SOS, line[i - 1], line[i]]
                for i in range(3, len(line))
            )
            found.append((float(first + rest) / (length + 1) ** power, list(sentence)))
    return sorted(found, reverse=True)


@pytest.mark.parametrize("power", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_a_wide_beam_finds_what_exhaustive_search_finds(seed, power):
    table = Table(7, seed)
    best = everything(table, 4, power)
    found = beam_search(table, PICTURES, 3**4 + 3**3 + 3**2 + 3, 4, power)
    assert len(found) == 3
    for hypotheses in found:
        assert [h.token_ids for h in hypotheses] == [words for _, words in best]
        assert [h.score for h in hypotheses] == pytest.approx(
            [score for score, _ in best], abs=1e-4
        )


@pytest.mark.parametrize("seed", range(5))
def test_greedy_is_argmax(seed):
    table = Table(9, seed)
    before, token, words = torch.tensor([1]), torch.tensor([SOS]), []
    for place in range(6):
        logits = table.logits[before, token].clone()[0]
        logits[[PAD, SOS, 3] + ([EOS] if place == 0 else [])] = float("-inf")
        before, token = token, logits.argmax().view(1)
        if token == EOS:
            break
        words.append(int(token))
    assert [s.token_ids for s in greedy(table, PICTURES, 6)] == [words] * 3


@pytest.mark.parametrize("kind", KINDS)
def test_sentences_are_never_empty_and_never_hold_special_tokens(kind):
    model, features = decoder(kind), torch.randn(5, PLACES, CHANNELS)
    with torch.no_grad():
        model.output.bias[:4] += 50  # a model that wants nothing but special tokens
    for hypotheses in beam_search(model, features, 4, 6):
        assert 1 <= len(hypotheses) <= 4 and len({tuple(h.token_ids) for h in hypotheses}) == len(
            hypotheses
        )
        assert all(1 <= len(h.token_ids) <= 6 and min(h.token_ids) > 3 for h in hypotheses)
        assert [h.score for h in hypotheses] == sorted((h.score for h in hypotheses), reverse=True)


def test_dead_beams_are_not_repeated():
    """One word in the language: there is exactly one sentence of each length, however wide the beam."""
    hypotheses = beam_search(Table(5, 0), PICTURES, 8, 3)[0]
    assert sorted(h.token_ids for h in hypotheses) == [[4], [4, 4], [4, 4, 4]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("beams", [1, 3])
def test_a_picture_is_described_alike_alone_and_in_company(kind, beams):
    model, features = decoder(kind), torch.randn(6, PLACES, CHANNELS)
    together = beam_search(model, features, beams, 8)
    for i in range(6):
        alone = beam_search(model, features[i : i + 1], beams, 8)[0]
        assert [h.token_ids for h in alone] == [h.token_ids for h in together[i]]


def test_a_wider_beam_finds_likelier_sentences_on_the_whole():
    scores = dict.fromkeys((1, 3, 10), 0.0)
    for seed in range(12):
        for beams in scores:
            scores[beams] += beam_search(Table(12, seed), PICTURES[:1], beams, 6)[0][0].score
    assert scores[1] < scores[3] < scores[10]


def test_no_three_words_twice():
    loop = Table(7, 3)
    loop.logits[:, :, EOS] = -20.0
    assert any(
        len({tuple(s.token_ids[i : i + 3]) for i in range(8)}) < 8
        for s in greedy(loop, PICTURES, 10)
    )
    for hypotheses in beam_search(loop, PICTURES, 3, 30, block_trigrams=True):
        for h in hypotheses:
            triples = [tuple(h.token_ids[i : i + 3]) for i in range(len(h.token_ids) - 2)]
            assert len(set(triples)) == len(triples)


def test_an_ensemble_of_one_model_twice_is_that_model():
    model, features = decoder("show_attend_tell"), torch.randn(4, PLACES, CHANNELS)
    both = beam_search(Ensemble([model, model]), features, 3, 8)
    assert [[h.token_ids for h in hs] for hs in both] == [
        [h.token_ids for h in hs] for hs in beam_search(model, features, 3, 8)
    ]


def test_an_ensemble_averages_log_probabilities():
    members, features = (
        [decoder(kind) for kind in ("show_and_tell", "show_attend_tell", "transformer")],
        torch.randn(2, PLACES, CHANNELS),
    )
    whole = Ensemble(members)
    logp, _, alpha = whole.step(whole.start(features), torch.full((2,), SOS))
    alone = [
        torch.log_softmax(m.step(m.start(features), torch.full((2,), SOS))[0], 1) for m in members
    ]
    torch.testing.assert_close(logp, torch.stack(alone).mean(0))
    torch.testing.assert_close(alpha.sum(1), torch.ones(2))
    torch.testing.assert_close(
        whole.forward_teacher_forced(features, torch.full((2, 1), SOS))[0][:, 0], logp
    )


def test_samples_follow_the_model():
    table = Table(6, 1)
    torch.manual_seed(0)
    drawn = sample(table, torch.zeros(20_000, 1), 3)
    assert (drawn[:, 0] == SOS).all() and ((drawn == EOS).sum(1) == 1).all()
    chances = torch.softmax(table.logits[1, SOS], 0)
    chances[[PAD, SOS, EOS, 3]] = 0
    shares = torch.bincount(drawn[:, 1], minlength=6) / len(drawn)
    torch.testing.assert_close(shares, chances / chances.sum(), atol=0.02, rtol=0)
    after = (drawn == EOS).int().cumsum(1).bool() & (drawn != EOS)
    assert (drawn[after] == PAD).all()


@pytest.mark.parametrize("seed", range(6))
def test_a_search_that_stops_later_never_ends_worse(seed):
    full, ahead = (
        beam_search(Table(9, seed), PICTURES[:1], 2, 12, early_stopping=stop)[0]
        for stop in ("full", "ahead")
    )
    assert ahead[0].score >= full[0].score and len(ahead) == len(full) == 2


def test_a_model_that_ends_too_soon_is_outwaited():
    """Two short sentences end at once; a far likelier long one is still alive."""
    soon = torch.full((8, 8), -20.0)
    soon[SOS, 4], soon[SOS, 5], soon[4, EOS], soon[5, EOS] = -1.2, -1.3, -1.0, -1.0
    soon[SOS, 6], soon[6, 7], soon[7, 6], soon[7, EOS] = -1.1, -0.01, -0.3, -0.9
    table = Table(8, 0)
    table.logits = soon.expand(8, 8, 8).clone()
    short, long = (
        beam_search(table, PICTURES[:1], 2, 8, early_stopping=stop)[0][0]
        for stop in ("full", "ahead")
    )
    assert len(long.token_ids) > len(short.token_ids) and long.score > short.score


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_fixed_in_a_state_depends_on_the_picture_alone(kind):
    model, features = decoder(kind), torch.randn(2, PLACES, CHANNELS)
    state = model.start(features)
    for token in (SOS, 5, 7):
        before, (_, state, _) = state, model.step(state, torch.full((2,), token))
        assert all(torch.equal(before[i], state[i]) for i in model.image_state_indices)
    assert model.input_kind == "pooled" or len(model.image_state_indices) == 2


class Grid(torch.nn.Conv2d):
    """The smallest encoder: each place of a picture (B, 3, 3, 3) by itself."""

    def forward(self, pixels):
        return super().forward(pixels.permute(0, 3, 1, 2)).flatten(2).transpose(1, 2)


@pytest.mark.parametrize("kind", ["show_and_tell", "show_attend_tell", "transformer"])
def test_who_also_looks_into_the_mirror_says_the_same_of_a_mirrored_picture(kind):
    """And looks at the mirrored places; without the mirror it does neither."""
    torch.manual_seed(0)
    model = ImageCaptioningModel(
        Grid(3, CHANNELS, 1), make_decoder(KINDS[kind], WORDS, CHANNELS, 9)
    ).eval()
    pixels, tokens = torch.rand(4, 3, 3, 3) * 9, torch.tensor([[SOS, 5, 6, 7]] * 4)
    both = Ensemble([model, HorizontalFlip(model)])
    with torch.no_grad():
        (said, looked), (again, turned) = (
            both.forward_teacher_forced(seen, tokens) for seen in (pixels, pixels.flip(2))
        )
        stepped = both.step(both.start(pixels), tokens[:, 0])[0]
        one = [model.forward_teacher_forced(seen, tokens)[0] for seen in (pixels, pixels.flip(2))]
    torch.testing.assert_close(said, again)
    torch.testing.assert_close(stepped, said[:, 0])
    if looked is not None:
        torch.testing.assert_close(looked.unflatten(-1, (3, 3)).flip(-1).flatten(-2), turned)
    if kind == "transformer":  # which knows where a place is
        assert not torch.allclose(*one)
