"""The fast paths against the plain ones: the same losses, the same gradients."""

import copy
from functools import partial

import pytest
import torch
from scenes import CHANNELS, KINDS, PLACES, WORDS

from tarazu.captions.build import MIN_CALLS
from tarazu.captions.data.vocabulary import SPECIALS, Vocabulary
from tarazu.captions.model.captioning_model import ImageCaptioningModel
from tarazu.captions.model.decoders import make_decoder
from tarazu.captions.model.decoders.attention_lstm import AttentionLSTMFunction
from tarazu.captions.settings import SelfCritical, ShowAttendTell
from tarazu.captions.trainable import cross_entropy_tensors
from tarazu.captions.training.cider_reward import CiderReward
from tarazu.captions.training.objective import self_critical_loss
from tarazu.engine.cuda_graphs import recorder
from tarazu.engine.cuda_graphs.recorder import GraphedFunction

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU"),
    ),
]
EVERY = KINDS | {
    "all": ShowAttendTell(
        embedding=12, hidden_size=16, attention=10, project=14, mix=9, tie_embeddings=True
    )
}


def pair(kind):
    """The same decoder twice: fast and plain."""
    torch.manual_seed(0)
    fast = make_decoder(
        EVERY[kind].model_copy(update={"fast": True, "dropout": 0.0}), WORDS, CHANNELS, PLACES
    )
    plain = make_decoder(
        EVERY[kind].model_copy(update={"fast": False, "dropout": 0.0}), WORDS, CHANNELS, PLACES
    )
    plain.load_state_dict(copy.deepcopy(fast.state_dict()))
    return fast.train(), plain.train()


@pytest.mark.parametrize("kind", EVERY)
def test_fast_and_plain_teaching_agree_in_losses_and_gradients(kind):
    torch.manual_seed(1)
    tokens = torch.randint(4, WORDS, (5, 9))
    tokens[1, 4:] = 0
    found = []
    for model in pair(kind):
        torch.manual_seed(2)
        features = torch.randn(5, PLACES, CHANNELS, requires_grad=True)
        positions = (tokens != 0).flatten().nonzero().squeeze(1) if model.fast else None
        logits, alphas = model.forward_teacher_forced(
            features, tokens, need_weights=False, positions=positions
        )
        wanted = tokens.flatten() if positions is None else tokens.flatten()[positions]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, -2), wanted, ignore_index=0)
        if model.input_kind == "map" and hasattr(model, "cell"):
            loss = loss + (1 - alphas.sum(1)).square().mean()
        loss.backward()
        grads = {name: p.grad for name, p in model.named_parameters()} | {"features": features.grad}
        found.append((loss.detach(), grads))
    (fast, of_fast), (plain, of_plain) = found
    torch.testing.assert_close(fast, plain, atol=1e-5, rtol=1e-5)
    for name, grad in of_plain.items():
        torch.testing.assert_close(
            of_fast[name], grad, atol=1e-5, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("gated", [True, False])
def test_the_hand_written_backward_pass_is_the_derivative(gated):
    torch.manual_seed(0)
    steps, count, places, channels, width, hidden = 3, 2, 4, 3, 5, 2
    rows = width + 4 * hidden + gated
    shapes = [(steps, count, 4 * hidden), (count, places, width), (count, places, channels), (count, hidden), (count, hidden),
              (rows, hidden), (rows,), (width,), (4 * hidden, channels)]  # fmt: skip
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    assert torch.autograd.gradcheck(AttentionLSTMFunction.apply, inputs)


def by_running(work, space):
    """Stands in for a CUDA graph where there is no GPU: playing back is running again into the same tensors."""
    found = [None if x is None else x.detach().clone() for x in work()]

    def play():
        with torch.enable_grad():
            again = work()
        for old, new in zip(found, again, strict=True):
            if old is not None:
                old.copy_(new.detach())

    return play, found


def without_a_gpu(monkeypatch):
    monkeypatch.setattr(recorder, "warm_up", lambda work, space: work())
    monkeypatch.setattr(recorder, "capture", by_running)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.parametrize("kind", ["show_and_tell", "show_attend_tell", "transformer"])
def test_a_recording_gives_the_losses_and_gradients_of_its_work(kind, monkeypatch):
    """Also when gradients add up over batches, when weights change in place, and when a part begins late."""
    without_a_gpu(monkeypatch)
    settings, decoder = EVERY[kind].model_copy(update={"label_smoothing": 0.1}), pair(kind)[0]
    model = ImageCaptioningModel(torch.nn.Linear(1, 1), decoder)
    played = GraphedFunction(partial(cross_entropy_tensors, model, settings), model, MIN_CALLS)
    late = list(model.parameters())[2]
    for step in range(6):
        late.requires_grad_(step >= 4)
        batches = [batch(step * 10 + i, length) for i, length in enumerate((6, 6, 9))]
        grads = []
        for work in (played, partial(cross_entropy_tensors, model, settings)):
            for one in batches:
                sum(work(*one)).backward()
            grads.append([p.grad for p in model.decoder.parameters()])
            model.zero_grad(set_to_none=True)
        for mine, wanted in zip(*grads, strict=True):
            assert (mine is None) == (wanted is None)
            if wanted is not None:
                torch.testing.assert_close(mine, wanted, atol=1e-5, rtol=1e-4)
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.01)
    assert (
        played.num_captured == 3 and not played.failure_reason
    )  # two shapes; then, with the late part, the one that is met often
    assert len(played.graphs) == 1  # what was recorded without that part is given up


@pytest.mark.parametrize("kind", ["show_and_tell", "show_attend_tell", "transformer"])
@pytest.mark.parametrize("device", DEVICES)
def test_a_recorded_self_critical_step_draws_and_learns_as_the_unrecorded(
    kind, device, monkeypatch
):
    """From the same seed: the same sentences, so the same losses and gradients; then other ones."""
    if device == "cpu":
        without_a_gpu(monkeypatch)
        dice = torch.get_rng_state()
        monkeypatch.setattr(
            torch, "get_rng_state", lambda: dice
        )  # here the device's dice are the host's, which no recording may throw
    words = Vocabulary(SPECIALS + tuple("abcdefg"), 1, 6)
    model = ImageCaptioningModel(torch.nn.Linear(1, 1), pair(kind)[0]).to(device)
    rewards = CiderReward(
        [[list("abcd"), list("bcd")], [list("efg")], [list("ggb")]], words, torch.device(device)
    )
    late, seen = SelfCritical(samples=4, sample_fraction=1.0, bleu=0.5), []

    def work(pictures, tokens, images):
        found = self_critical_loss(model, pictures, tokens, images, rewards, late, 6)
        return found.total, found.penalty

    played, inputs = (
        GraphedFunction(work, model, MIN_CALLS),
        (*(x.to(device) for x in batch(0, 7)), torch.arange(3, device=device)),
    )
    for step in range(6):
        found = []
        for run in (played, work):
            torch.manual_seed(step)
            losses = run(*inputs)
            sum(losses).backward()
            found.append(
                [
                    losses[0].detach(),
                    losses[1].detach(),
                    *(p.grad for p in model.decoder.parameters()),
                ]
            )
            del losses  # a graph that is alive while a recording is made spoils it
            model.zero_grad(set_to_none=True)
        for mine, wanted in (
            zip(*found, strict=True) if step != MIN_CALLS - 1 or device == "cuda" else ()
        ):
            torch.testing.assert_close(
                mine, wanted, atol=1e-4, rtol=1e-3
            )  # without a GPU recording itself draws
        seen.append(float(found[0][1]))
    assert played.num_captured == 1 and not played.failure_reason and len(set(seen)) == 6


class Eye(torch.nn.Conv2d):
    """The smallest encoder."""

    def forward(self, pixels):
        return super().forward(pixels).flatten(2).transpose(1, 2)


def batch(seed, length):
    torch.manual_seed(seed)
    tokens = torch.randint(4, WORDS, (3, length))
    tokens[:, 0], tokens[1, 4:] = 1, 0
    return torch.randn(3, PLACES, CHANNELS), tokens


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
@pytest.mark.parametrize("kind", ["show_and_tell", "show_attend_tell", "transformer"])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_real_recording_gives_the_losses_and_gradients_of_its_work(kind, dtype):
    """With an encoder that is tuned, and with bfloat16 around it."""
    settings, decoder = EVERY[kind].model_copy(update={"label_smoothing": 0.1}), pair(kind)[0]
    model = ImageCaptioningModel(Eye(8, CHANNELS, 1), decoder).cuda()
    work = partial(cross_entropy_tensors, model, settings)
    played = GraphedFunction(work, model, MIN_CALLS)
    for step in range(6):
        torch.manual_seed(step)
        tokens = batch(step, 7)[1].cuda()
        pixels, grads = torch.randn(3, 8, 2, PLACES // 2, device="cuda"), []
        for run in (played, work):
            with torch.autocast("cuda", dtype, enabled=dtype is not None):
                losses = run(pixels, tokens)
            sum(losses).backward()
            sum(run(pixels, tokens)).backward()  # gradients add up
            grads.append([sum(losses).detach(), *(p.grad for p in model.parameters())])
            del losses
            model.zero_grad(set_to_none=True)
        for mine, wanted in zip(*grads, strict=True):
            torch.testing.assert_close(
                mine,
                wanted,
                atol=1e-4 if dtype is None else 1e-2,
                rtol=1e-3 if dtype is None else 3e-2,
            )
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.01)
    assert played.graphs and not played.failure_reason
