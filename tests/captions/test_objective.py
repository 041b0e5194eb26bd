"""What is trained on, against the same written out by hand."""

import pytest
import torch
from scenes import CHANNELS, KINDS, PLACES, WORDS, decoder
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
FEATURES = torch.randn(3, PLACES, CHANNELS, generator=torch.Generator().manual_seed(1))
ENCODER = EfficientNet(ENCODER_CONFIGS["efficientnet-lite0"], (127.0,) * 3, (128.0,) * 3)


def model(kind, train=True):
    whole = ImageCaptioningModel(ENCODER, decoder(kind))
    for part in whole.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    return whole.train(train)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_counts_for_nothing(kind):
    plain = ShowAndTell()
    whole = cross_entropy_loss(model(kind, False), FEATURES, TOKENS, plain, 0.0).total
    alone = sum(
        cross_entropy_loss(
            model(kind, False), FEATURES[i : i + 1], TOKENS[i : i + 1, :width], plain, 0.0
        ).total
        for i, width in enumerate((5, 3, 4))
    )
    torch.testing.assert_close(whole, alone, atol=1e-4, rtol=1e-5)
    wider = F.pad(TOKENS, (0, 4), value=PAD)
    torch.testing.assert_close(
        cross_entropy_loss(model(kind, False), FEATURES, wider, plain, 0.0).total,
        whole,
        atol=1e-4,
        rtol=1e-5,
    )


def test_label_smoothing_is_pytorchs():
    found = cross_entropy_loss(
        model("show_and_tell"), FEATURES, TOKENS, ShowAndTell(label_smoothing=0.2), 0.0
    )
    logits = model("show_and_tell")(FEATURES, TOKENS[:, :-1]).flatten(0, 1)
    smooth = F.cross_entropy(
        logits, TOKENS[:, 1:].flatten(), ignore_index=PAD, label_smoothing=0.2, reduction="sum"
    )
    torch.testing.assert_close(found.total + found.penalty, smooth)
    torch.testing.assert_close(
        found.total,
        F.cross_entropy(logits, TOKENS[:, 1:].flatten(), ignore_index=PAD, reduction="sum"),
    )


def test_doubly_stochastic_penalty_is_the_papers():
    settings = ShowAttendTell(doubly_stochastic=0.5)
    found = cross_entropy_loss(model("show_attend_tell"), FEATURES, TOKENS, settings, 0.0)
    alphas = model("show_attend_tell").forward_teacher_forced(FEATURES, TOKENS[:, :-1])[1]
    by_hand = sum(
        (1 - alphas[i, :steps].sum(0)).square().sum() for i, steps in enumerate((4, 2, 3))
    )
    torch.testing.assert_close(found.penalty, 0.5 * by_hand)


def test_nothing_is_disturbed_when_it_is_judged():
    heavy = ShowAttendTell(
        dropout=0.5, word_dropout=0.9, scheduled_sampling=0.9, label_smoothing=0.5
    )
    judged = cross_entropy_loss(model("show_attend_tell", False), FEATURES, TOKENS, heavy, 1.0)
    assert judged.penalty is None
    torch.testing.assert_close(
        judged.total,
        cross_entropy_loss(
            model("show_attend_tell", False), FEATURES, TOKENS, ShowAttendTell(), 0.0
        ).total,
    )


def test_hidden_words_and_the_models_own_words():
    torch.manual_seed(0)
    inputs = torch.tensor([[SOS, 5, 6, 7, 8, 9, PAD]]).repeat(400, 1)
    features = FEATURES[:1].repeat(400, 1, 1)
    hidden = objective._corrupt_inputs(
        model("transformer"), features, inputs, ShowAndTell(word_dropout=0.25), 0.0
    )
    share = (hidden[:, 1:6] == UNK).float().mean()
    assert 0.2 < share < 0.3 and (hidden[:, 0] == SOS).all() and (hidden[:, 6] == PAD).all()
    assert ((hidden == inputs) | (hidden == UNK)).all()
    settings = ShowAndTell(scheduled_sampling=0.5)
    assert torch.equal(
        objective._corrupt_inputs(model("transformer"), features, inputs, settings, 0.0), inputs
    )
    own = objective._corrupt_inputs(model("transformer"), features, inputs, settings, 1.0)
    assert (
        0.3 < (own[:, 1:6] != inputs[:, 1:6]).float().mean() < 0.5
    )  # some of its words are the right ones
    assert (
        (own[:, 0] == SOS).all()
        and (own[:, 6] == PAD).all()
        and not ((own == SOS).any(1) & (own[:, 0] != SOS)).any()
    )


def test_self_critical_training_raises_the_reward():
    torch.manual_seed(0)
    words = Vocabulary(SPECIALS + tuple("abcdefg"), 1, 6)
    assert len(words) == WORDS
    wanted = {"x": ["a b c d", "a b c"], "y": ["e f g e", "e f g"], "z": ["g g b", "g g b a"]}
    rewards = CiderReward(
        [[text.split() for text in texts] for texts in wanted.values()], words, torch.device("cpu")
    )
    whole, settings = (
        model("show_and_tell"),
        SelfCritical(from_epoch=0, samples=8, sample_fraction=1.0),
    )
    optimizer = torch.optim.Adam(whole.decoder.parameters(), 0.01)
    captions = torch.tensor([words.encode(wanted[name][0].split()) for name in "xyz"])

    def reward():
        drawn = sample(whole, FEATURES.repeat_interleave(40, 0), 6)
        return rewards(torch.arange(3).repeat_interleave(40), drawn).mean()

    before = reward()
    for _ in range(60):
        found = self_critical_loss(whole, FEATURES, captions, torch.arange(3), rewards, settings, 6)
        optimizer.zero_grad()
        (found.total + found.penalty).backward()
        optimizer.step()
    assert reward() > 2 * before
    assert found.total > 0  # what is reported stays the likelihood


def test_the_reward_weighs_as_much_beside_the_likelihood_when_captions_share_a_picture():
    words = Vocabulary(SPECIALS + tuple("abcdefg"), 1, 6)
    rewards = CiderReward(
        [[list("abcd")], [list("efg")], [list("ggb")]], words, torch.device("cpu")
    )
    captions = torch.tensor([words.encode(list(text)) for text in ("abcd", "efg", "ggb")])
    whole, found = model("transformer"), []
    for tokens, rows in ((captions, ()), (captions.repeat(2, 1), (torch.arange(3).repeat(2),))):
        torch.manual_seed(0)
        losses = self_critical_loss(
            whole,
            FEATURES,
            tokens,
            torch.arange(3),
            rewards,
            SelfCritical(samples=3, sample_fraction=1.0, likelihood=0.3),
            6,
            *rows,
        )
        found.append(torch.stack([losses.total, losses.total + losses.penalty]))
    torch.testing.assert_close(found[1], 2 * found[0])


def test_what_is_learnt_from_is_what_was_drawn_from():
    """Special words, an end before the first word and anything but the end after the last have no chance and no gradient."""
    logits = torch.randn(2, 4, WORDS, generator=torch.Generator().manual_seed(0)).requires_grad_()
    said = torch.tensor(
        [[5, 6, 7, EOS], [8, EOS, PAD, PAD]]
    )  # three words at most: the first one's end was forced
    found = objective._sample_log_probs(logits, said, 3)
    for line in range(2):
        for place, word in enumerate(said[line].tolist()):
            allowed = torch.softmax(
                mask_forbidden(logits[line : line + 1, place], place, 3), 1
            )[0]
            wanted = allowed[word].log() if word != PAD else torch.zeros(())
            torch.testing.assert_close(found[line, place], wanted)
    assert found[0, 3] == 0
    (grad,) = torch.autograd.grad(found.sum(), logits)
    assert grad[0, :3].abs().sum() > 0 and not grad[0, 3].any() and not grad[1, 2:].any()
    assert not grad[:, :, [PAD, SOS, UNK]].any() and not grad[:, 0, EOS].any()


def test_hidden_channels_are_the_same_at_all_places_and_only_in_training():
    whole = ImageCaptioningModel(ENCODER, decoder("show_attend_tell"), feature_dropout=0.4)
    ones = torch.ones(50, PLACES, CHANNELS)
    seen = whole.train().encode_images(ones)
    assert torch.equal(seen, seen[:, :1].expand_as(seen))
    assert 0.3 < (seen == 0).float().mean() < 0.5 and seen.max() == pytest.approx(1 / 0.6)
    with without_dropout(whole):  # rewards are drawn without it
        assert whole.encode_images(ones) is ones
    assert whole.eval().encode_images(ones) is ones


@pytest.mark.parametrize("kind", ["tied_teller", "tied_attention", "tied_plain", "sinusoidal"])
def test_tied_words_are_one_matrix(kind):
    found = decoder(kind)
    assert found.output.weight is found.embedding.weight
    assert (
        len(
            [
                name
                for name, p in found.named_parameters()
                if p.shape == (WORDS, found.embedding.embedding_dim)
            ]
        )
        == 1
    )


@pytest.mark.parametrize("share", [0.0, 0.6])
def test_what_is_drawn_without_dropout_may_be_learnt_from_with_it(share):
    """The same sentences, and so the same loss, where there is none; another gradient each time where there is."""
    words = Vocabulary(SPECIALS + tuple("abcdefg"), 1, 6)
    rewards = CiderReward(
        [[list("abcd")], [list("efg")], [list("ggb")]], words, torch.device("cpu")
    )
    captions = torch.tensor([words.encode(list(text)) for text in ("abcd", "efg", "ggb")])
    whole = ImageCaptioningModel(
        ENCODER, decoder("show_attend_tell"), feature_dropout=share
    ).train()
    for part in whole.decoder.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    found = []
    for settings in (
        SelfCritical(samples=3, sample_fraction=1.0, likelihood=0.3, dropout=on)
        for on in (False, True)
    ):
        torch.manual_seed(0)
        losses = self_critical_loss(
            whole, FEATURES, captions, torch.arange(3), rewards, settings, 6
        )
        found.append(losses.total + losses.penalty)
    assert torch.allclose(*found) is (share == 0.0)
