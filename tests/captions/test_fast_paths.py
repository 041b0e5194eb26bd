"""The fast paths against the plain ones: the same losses and gradients."""

import copy
from functools import partial

import pytest
import torch
from tiny_decoders import CHANNELS, KINDS, POSITIONS, VOCAB_SIZE

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

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
DEVICES = ["cpu", pytest.param("cuda", marks=needs_gpu)]
THREE_KINDS = pytest.mark.parametrize("kind", ["show_and_tell", "show_attend_tell", "transformer"])
ALL_OPTIONS = ShowAttendTell(
    embedding=12, hidden_size=16, attention=10, project=14, mix=9, tie_embeddings=True
)
ALL_KINDS = KINDS | {"all_options": ALL_OPTIONS}


def fast_and_plain(kind):
    """Two equal decoders, one with the fast path, without dropout."""
    torch.manual_seed(0)
    fast, plain = (
        make_decoder(
            ALL_KINDS[kind].model_copy(update={"fast": fast, "dropout": 0.0}),
            VOCAB_SIZE,
            CHANNELS,
            POSITIONS,
        )
        for fast in (True, False)
    )
    plain.load_state_dict(copy.deepcopy(fast.state_dict()))
    return fast.train(), plain.train()


def random_batch(seed, length):
    """Features (3, P, D) and tokens (3, length), one of them padded."""
    torch.manual_seed(seed)
    tokens = torch.randint(4, VOCAB_SIZE, (3, length))
    tokens[:, 0], tokens[1, 4:] = 1, 0
    return torch.randn(3, POSITIONS, CHANNELS), tokens


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_fast_and_plain_paths_agree_in_losses_and_gradients(kind):
    torch.manual_seed(1)
    tokens = torch.randint(4, VOCAB_SIZE, (5, 9))
    tokens[1, 4:] = 0
    losses, gradients = [], []
    for model in fast_and_plain(kind):
        torch.manual_seed(2)
        features = torch.randn(5, POSITIONS, CHANNELS, requires_grad=True)
        positions = (tokens != 0).flatten().nonzero().squeeze(1) if model.fast else None
        logits, alphas = model.forward_teacher_forced(
            features, tokens, need_weights=False, positions=positions
        )
        labels = tokens.flatten() if positions is None else tokens.flatten()[positions]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, -2), labels, ignore_index=0)
        if hasattr(model, "cell"):  # the attention weights get gradients too
            loss = loss + (1 - alphas.sum(1)).square().mean()
        loss.backward()
        losses.append(loss.detach())
        gradients.append({name: p.grad for name, p in model.named_parameters()})
        gradients[-1]["features"] = features.grad
    torch.testing.assert_close(*losses, atol=1e-5, rtol=1e-5)
    fast, plain = gradients
    for name, gradient in plain.items():
        torch.testing.assert_close(
            fast[name],
            gradient,
            atol=1e-5,
            rtol=1e-4,
            msg=lambda text, name=name: f"{name}: {text}",
        )


@pytest.mark.parametrize("gated", [True, False])
def test_the_hand_written_backward_pass_passes_gradcheck(gated):
    torch.manual_seed(0)
    steps, batch, positions, channels, width, hidden = 3, 2, 4, 3, 5, 2
    rows = width + 4 * hidden + gated
    shapes = [
        (steps, batch, 4 * hidden),
        (batch, positions, width),
        (batch, positions, channels),
        (batch, hidden),
        (batch, hidden),
        (rows, hidden),
        (rows,),
        (width,),
        (4 * hidden, channels),
    ]
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    assert torch.autograd.gradcheck(AttentionLSTMFunction.apply, inputs)


def emulated_capture(work, pool):
    """Emulate a CUDA graph without a GPU: a replay runs the work again, into the same tensors."""
    outputs = [None if x is None else x.detach().clone() for x in work()]

    def replay():
        with torch.enable_grad():
            new_outputs = work()
        for output, new_output in zip(outputs, new_outputs, strict=True):
            if output is not None:
                output.copy_(new_output.detach())

    return replay, outputs


def emulate_cuda_graphs(monkeypatch):
    monkeypatch.setattr(recorder, "warm_up", lambda work, pool: work())
    monkeypatch.setattr(recorder, "capture", emulated_capture)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@THREE_KINDS
def test_a_graph_gives_the_losses_and_gradients_of_its_work(kind, monkeypatch):
    """Gradients accumulate over batches, weights change in place, one parameter thaws late."""
    emulate_cuda_graphs(monkeypatch)
    settings = ALL_KINDS[kind].model_copy(update={"label_smoothing": 0.1})
    model = ImageCaptioningModel(torch.nn.Linear(1, 1), fast_and_plain(kind)[0])
    work = partial(cross_entropy_tensors, model, settings)
    graphed = GraphedFunction(work, model, MIN_CALLS)
    late_parameter = list(model.parameters())[2]
    for step in range(6):
        late_parameter.requires_grad_(step >= 4)
        batches = [random_batch(step * 10 + i, length) for i, length in enumerate((6, 6, 9))]
        gradients = []
        for function in (graphed, work):
            for inputs in batches:
                sum(function(*inputs)).backward()
            gradients.append([p.grad for p in model.decoder.parameters()])
            model.zero_grad(set_to_none=True)
        for graphed_gradient, gradient in zip(*gradients, strict=True):
            assert (graphed_gradient is None) == (gradient is None)
            if gradient is not None:
                torch.testing.assert_close(graphed_gradient, gradient, atol=1e-5, rtol=1e-4)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.01)
    # Two shapes; then, with the late parameter, the one that comes often enough.
    assert graphed.num_captured == 3 and not graphed.failure_reason
    assert len(graphed.graphs) == 1  # the graphs without that parameter are discarded


@THREE_KINDS
@pytest.mark.parametrize("device", DEVICES)
def test_a_graphed_self_critical_step_equals_an_eager_one(kind, device, monkeypatch):
    """From one seed both sample the same captions; another seed gives another loss."""
    if device == "cpu":
        emulate_cuda_graphs(monkeypatch)
        # On a CPU the device's random state is the host's, which a capture must not draw from.
        state = torch.get_rng_state()
        monkeypatch.setattr(torch, "get_rng_state", lambda: state)
    vocabulary = Vocabulary(SPECIALS + tuple("abcdefg"), 1, 6)
    model = ImageCaptioningModel(torch.nn.Linear(1, 1), fast_and_plain(kind)[0]).to(device)
    references = [[list("abcd"), list("bcd")], [list("efg")], [list("ggb")]]
    reward = CiderReward(references, vocabulary, torch.device(device))
    settings = SelfCritical(samples=4, sample_fraction=1.0, bleu=0.5)

    def work(images, tokens, image_ids):
        loss = self_critical_loss(model, images, tokens, image_ids, reward, settings, 6)
        return loss.total, loss.penalty

    graphed, penalties = GraphedFunction(work, model, MIN_CALLS), set()
    inputs = [x.to(device) for x in (*random_batch(0, 7), torch.arange(3))]
    for step in range(6):
        results = []
        for function in (graphed, work):
            torch.manual_seed(step)
            losses = function(*inputs)
            sum(losses).backward()
            gradients = [p.grad for p in model.decoder.parameters()]
            results.append([losses[0].detach(), losses[1].detach(), *gradients])
            del losses  # an autograd graph that is alive during a capture spoils it
            model.zero_grad(set_to_none=True)
        # The emulated capture draws random numbers itself, so its step differs.
        if step != MIN_CALLS - 1 or device == "cuda":
            for graphed_result, result in zip(*results, strict=True):
                torch.testing.assert_close(graphed_result, result, atol=1e-4, rtol=1e-3)
        penalties.add(float(results[0][1]))
    assert graphed.num_captured == 1 and not graphed.failure_reason and len(penalties) == 6


class TinyEncoder(torch.nn.Conv2d):
    """The smallest encoder: a convolution whose positions are the feature map's."""

    def forward(self, pixels):
        return super().forward(pixels).flatten(2).transpose(1, 2)


@needs_gpu
@THREE_KINDS
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_cuda_graph_gives_the_losses_and_gradients_of_its_work(kind, dtype):
    """With a tuned encoder, and under autocast."""
    settings = ALL_KINDS[kind].model_copy(update={"label_smoothing": 0.1})
    model = ImageCaptioningModel(TinyEncoder(8, CHANNELS, 1), fast_and_plain(kind)[0]).cuda()
    work = partial(cross_entropy_tensors, model, settings)
    graphed = GraphedFunction(work, model, MIN_CALLS)
    atol, rtol = (1e-4, 1e-3) if dtype is None else (1e-2, 3e-2)
    for step in range(6):
        torch.manual_seed(step)
        tokens = random_batch(step, 7)[1].cuda()
        pixels = torch.randn(3, 8, 2, POSITIONS // 2, device="cuda")
        results = []
        for function in (graphed, work):
            with torch.autocast("cuda", dtype, enabled=dtype is not None):
                losses = function(pixels, tokens)
            sum(losses).backward()
            sum(function(pixels, tokens)).backward()  # gradients accumulate
            results.append([sum(losses).detach(), *(p.grad for p in model.parameters())])
            del losses
            model.zero_grad(set_to_none=True)
        for graphed_result, result in zip(*results, strict=True):
            torch.testing.assert_close(graphed_result, result, atol=atol, rtol=rtol)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.01)
    assert graphed.graphs and not graphed.failure_reason
