"""Passes replayed from CUDA graphs equal eager passes, for plain layers and for the fast path."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from chat.tiny import Words
from engine.emulated_graphs import by_running
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, Gemma2Config, Gemma3TextConfig, LlamaConfig

from tarazu.chat import task
from tarazu.chat.fast import graphed_forward
from tarazu.chat.model import building, flex_attention, forward
from tarazu.chat.model.batching import TokenizedRow, bin_pack, make_batch, pack_rows
from tarazu.chat.prepared_data import ChatData
from tarazu.chat.settings import ChatRecipe
from tarazu.engine.cuda_graphs import recorder
from tarazu.engine.invariants import perturbations

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
SIZES = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
TYPES = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]
SHAPES = {
    "gemma2": Gemma2Config(**SIZES, sliding_window=128, query_pre_attn_scalar=16),
    "gemma3": Gemma3TextConfig(
        **SIZES, sliding_window=128, query_pre_attn_scalar=16, layer_types=TYPES
    ),
    "llama": LlamaConfig(**SIZES),
}
PLAIN = [("llama", "sdpa"), ("gemma2", "eager"), ("gemma3", "sdpa")]
NAMES = ["prompt_tuning", "prefix_tuning", "p_tuning", "lora", "rslora", "dora", "loha", "layers"]
# Packed, each is one line, and the two widths differ, with or without virtual tokens.
LENGTHS = ((280, 250, 170, 77, 60), (200, 60))
SHORT_LENGTHS = ((150, 60), (90,))  # the same on a CPU


def build_trainable(
    name: str,
    shape: str,
    attention: str,
    device: str,
    checkpointing: bool = False,
    fast: bool = True,
    **settings,
):
    """One method on a tiny model; its trained tensors are moved from their initial values."""
    budget = {"tokens": 1000, "precision": "float32", "gradient_checkpointing": checkpointing}
    recipe = ChatRecipe.model_validate(
        {
            "task": "chat",
            "model": shape,
            "data": {"source": "x"},
            "methods": {name: settings},
            "budget": budget,
            "fast": fast,
        }
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        SHAPES[shape], dtype=torch.float32, attn_implementation=attention
    ).to(device)
    trainable = building.wrap_model(recipe, name, model, Words())
    with torch.no_grad():
        for p in trainable.trainable().values():
            p.add_(
                torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())).to(p)
                * 0.02
            )
    trainable.module.train()
    return trainable


def gradients(
    trainable, lengths: tuple[int, ...], packed: bool
) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of rows of these lengths, in passes of at most 1,024 positions.

    Packed lines get the widths that they would have on a GPU.
    """
    rows = [
        TokenizedRow(np.random.default_rng(i).integers(3, 512, n), np.arange(n) > n // 3, i)
        for i, n in enumerate(lengths)
    ]
    device, prefix = trainable.base.device, trainable.prefix_length
    total = torch.zeros((), device=device)
    virtual = trainable.prompt_length
    if packed:
        layout = pack_rows(rows, 1024, virtual)
    else:
        layout = [(lines, None, 0) for lines in bin_pack(rows, 1024, virtual, False)]
    for lines, width, _ in layout:
        batch = make_batch(lines, virtual, prefix, width=width).to(device)
        loss = task.Chat().loss(trainable, batch).total
        loss.backward()
        total += loss.detach()
        del loss  # a live autograd graph would spoil a capture
    named = trainable.trainable().items()
    grads = {name: p.grad.clone() for name, p in named if p.grad is not None}
    trainable.module.zero_grad(set_to_none=True)
    return float(total), grads


def compare(expected: tuple, actual: tuple, loss: float, rtol: float, atol: float) -> None:
    """Losses agree within `loss`, relatively; gradients by their norms."""
    assert abs(expected[0] - actual[0]) < loss * abs(expected[0])
    for key, value in expected[1].items():
        error = torch.linalg.norm(actual[1][key] - value)
        assert error < rtol * torch.linalg.norm(value) + atol, key


class HostOperations(TorchDispatchMode):
    """Records every operation with a CPU tensor, while the model is on the meta device."""

    def __init__(self):
        super().__init__()
        self.operations: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if any(
            isinstance(x, torch.Tensor) and x.device.type == "cpu"
            for x in tree_leaves((args, kwargs, out))
        ):
            self.operations.append(str(function))
        return out


def host_operations(name: str, shape: str, attention: str, **settings) -> list[str]:
    """CPU operations of a forward and a backward pass, on a model without weights."""
    with torch.device("meta"):
        trainable = build_trainable(name, shape, attention, "meta", **settings)
    trainable.module.to("meta")
    prefix = trainable.prefix_length
    rows = [TokenizedRow(np.full(n, 7), np.arange(n) > 3, i) for i, n in enumerate((100, 90, 60))]
    batch = make_batch([rows], trainable.prompt_length, prefix, width=384)
    fields = ("ids", "virtual_indices", "positions", "segments")
    inputs = [getattr(batch, key).to("meta") for key in fields]
    for first in filter(None, (trainable.prompt, trainable.prefix)):
        first()  # moves its indices to the device once, as the warm-up does
    with HostOperations() as watch:
        out = graphed_forward.make_graphed_forward(trainable).work(*inputs, 0)[0]
        torch.autograd.grad(
            out, list(trainable.trainable().values()), torch.ones_like(out), allow_unused=True
        )
    return watch.operations


@pytest.mark.parametrize(("shape", "attention"), PLAIN)
@pytest.mark.parametrize("name", NAMES)
def test_pass_runs_no_host_operation(name, shape, attention):
    assert not host_operations(name, shape, attention)


@pytest.mark.parametrize("name", ["lora", "dora"])
def test_dropout_runs_no_host_operation(name):
    assert not host_operations(name, "gemma3", "sdpa", dropout=0.1)


def test_host_operations_sees_a_random_draw_on_the_host():
    assert "aten.rand.default" in host_operations("loha", "llama", "sdpa", dropout=0.1)


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(recorder, "warm_up", lambda work, space: work())
    monkeypatch.setattr(recorder, "capture", by_running)
    # Where there is a GPU, its memory must not be used.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.parametrize(
    ("name", "shape", "attention"),
    [*((name, "gemma3", "sdpa") for name in NAMES), ("prefix_tuning", "gemma2", "eager")],
)
def test_replayed_pass_equals_eager_pass(name, shape, attention, no_gpu):
    eager, graphed = (
        build_trainable(name, shape, attention, "cpu"),
        build_trainable(name, shape, attention, "cpu"),
    )
    graphed.graphed_forward = graphed_forward.make_graphed_forward(graphed)
    for lengths in (*SHORT_LENGTHS, *SHORT_LENGTHS, *SHORT_LENGTHS):
        compare(
            gradients(eager, lengths, True), gradients(graphed, lengths, True), 1e-5, 1e-4, 1e-5
        )
    assert len(graphed.graphed_forward.graphs) == 2 and not graphed.graphed_forward.failure_reason
    gradients(graphed, (128, 128), False)
    assert len(graphed.graphed_forward.graphs) == 2  # padded rows have any shape


def widths(trainable) -> list[int]:
    """Widths of the captured graphs, in the order of capture."""
    return [graph.inputs[0].shape[1] for graph in trainable.graphed_forward.graphs.values()]


def test_widest_line_is_captured_first(no_gpu):
    """A line wider than all captured ones discards their graphs: narrow graphs reuse its memory."""
    eager, graphed = (
        build_trainable("lora", "gemma3", "sdpa", "cpu"),
        build_trainable("lora", "gemma3", "sdpa", "cpu"),
    )
    graphed.graphed_forward = graphed_forward.make_graphed_forward(graphed)
    for size, width, widest, expected in (
        (90, 128, 0, [128]),
        (200, 256, 0, [256]),
        (90, 128, 0, [256, 128]),
        (300, 384, 640, [640, 384]),
        (500, 512, 640, [640, 384, 512]),
    ):
        batch = make_batch(
            [
                [
                    TokenizedRow(
                        np.random.default_rng(size).integers(3, 512, size), np.arange(size) > 9
                    )
                ]
            ],
            width=width,
            max_line_width=widest,
        )
        actual = []
        for trainable in (eager, graphed):
            loss = task.Chat().loss(trainable, batch).total
            loss.backward()
            actual.append(
                (
                    float(loss.detach()),
                    {n: p.grad.clone() for n, p in trainable.trainable().items()},
                )
            )
            trainable.module.zero_grad(set_to_none=True)
        compare(*actual, 1e-5, 1e-4, 1e-5)
        assert widths(graphed) == expected


def test_padding_to_the_widest_line_moves_the_last_boundary():
    batch = make_batch(
        [
            [
                TokenizedRow(np.arange(70), np.arange(70) > 3),
                TokenizedRow(np.arange(50), np.arange(50) > 3),
            ]
        ],
        width=256,
        with_cu_seqlens=True,
        max_line_width=384,
    )
    padded_batch = graphed_forward._padded_to_widest(batch)
    assert padded_batch.ids.shape == padded_batch.segments.shape == (1, 384)
    assert (
        padded_batch.cu_seqlens[:4].tolist() == [0, 70, 120, 384]
        and padded_batch.cu_seqlens.dtype == batch.cu_seqlens.dtype
        and len(padded_batch.cu_seqlens) == len(batch.cu_seqlens)
    )


def test_dropout_on_the_host_is_not_captured(no_gpu):
    graphed = build_trainable("loha", "llama", "sdpa", "cpu", dropout=0.1)
    graphed.graphed_forward = graphed_forward.make_graphed_forward(graphed)
    for _ in range(3):
        before = torch.get_rng_state()
        gradients(graphed, SHORT_LENGTHS[1], True)
        assert not torch.equal(before, torch.get_rng_state())
    assert (
        "drawn on the host" in graphed.graphed_forward.failure_reason
        and not graphed.graphed_forward.graphs
    )
    assert (
        "drawn on the host"
        in task.Chat().code_paths(graphed, ChatData(None, None, None, [], True))["layers"]
    )


def test_perturbed_embeddings_invalidate_captured_graphs(no_gpu):
    graphed = build_trainable("lora", "llama", "sdpa", "cpu")
    graphed.graphed_forward = graphed_forward.make_graphed_forward(graphed)
    before = [gradients(graphed, SHORT_LENGTHS[1], True)[0] for _ in range(3)]
    with perturbations.embeddings_perturbed(graphed.module, 0.05):
        moved = [gradients(graphed, SHORT_LENGTHS[1], True)[0] for _ in range(3)]
    after = [gradients(graphed, SHORT_LENGTHS[1], True)[0] for _ in range(3)]
    assert (
        np.allclose(before, after, rtol=1e-6)
        and min(abs(m - before[0]) for m in moved) > 1e-4 * before[0]
    )


@GPU
@pytest.mark.parametrize(("shape", "attention"), PLAIN)
@pytest.mark.parametrize("name", NAMES)
def test_plain_layers_are_captured_on_a_gpu(name, shape, attention):
    torch.backends.cuda.matmul.allow_tf32 = False
    eager, graphed = (
        build_trainable(name, shape, attention, "cuda"),
        build_trainable(name, shape, attention, "cuda"),
    )
    eager.graphed_forward = None
    for lengths in (*LENGTHS, *LENGTHS, *LENGTHS):
        compare(
            gradients(eager, lengths, True), gradients(graphed, lengths, True), 1e-5, 1e-3, 1e-4
        )
    padded = gradients(eager, LENGTHS[1], False), gradients(graphed, LENGTHS[1], False)
    compare(*padded, 1e-5, 1e-3, 1e-4)  # padded rows run eagerly in both
    assert not graphed.graphed_forward.failure_reason and len(graphed.graphed_forward.graphs) == 2


@GPU
def test_lstm_prompt_encoder_is_captured_or_runs_eagerly():
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    eager, graphed = (
        build_trainable("p_tuning", "gemma3", "sdpa", "cuda", encoder="LSTM") for _ in range(2)
    )
    eager.graphed_forward = None
    for _ in range(4):
        compare(
            gradients(eager, LENGTHS[1], True),
            gradients(graphed, LENGTHS[1], True),
            1e-5,
            1e-3,
            1e-4,
        )
    assert bool(graphed.graphed_forward.graphs) != bool(graphed.graphed_forward.failure_reason), (
        graphed.graphed_forward.failure_reason
    )


@GPU
@pytest.mark.parametrize(
    "settings", [{"dropout": 0.3}, {"checkpointing": True}, {"dropout": 0.3, "checkpointing": True}]
)
def test_dropout_and_checkpointing_of_plain_layers_on_a_gpu(settings):
    torch.backends.cuda.matmul.allow_tf32 = False
    eager, graphed = (
        build_trainable("lora", "gemma3", "sdpa", "cuda", **settings) for _ in range(2)
    )
    eager.graphed_forward, losses = None, []
    for seed in range(5):
        actual = []
        for trainable in (eager, graphed):
            torch.manual_seed(seed)
            actual.append(gradients(trainable, LENGTHS[1], True))
        compare(*actual, 1e-5, 1e-3, 1e-4)  # both draw the same dropout masks
        losses.append(actual[1][0])
    assert len(set(losses)) == 5 or "dropout" not in settings
    assert len(settings) == 2 or graphed.graphed_forward.graphs, (
        graphed.graphed_forward.failure_reason
    )


@GPU
def test_bfloat16_pass_of_plain_layers_is_captured():
    eager, graphed = (
        build_trainable("dora", "gemma3", "sdpa", "cuda"),
        build_trainable("dora", "gemma3", "sdpa", "cuda"),
    )
    eager.graphed_forward = None
    with torch.autocast("cuda", torch.bfloat16):
        batch = make_batch([[TokenizedRow(np.arange(200) + 3, np.arange(200) > 3)]], width=256).to(
            torch.device("cuda")
        )
        half = replace(
            batch, segments=torch.where(torch.arange(256, device="cuda") < 100, 0, 1)[None]
        )
        for one in (batch, batch, half, batch):
            actual = (
                graphed_forward.hidden_states(graphed, one).detach().float()
            )  # a graph that is kept would spoil the capture
            assert torch.linalg.norm(
                actual - (wanted := forward.hidden_states(eager, one).detach().float())
            ) < 1e-2 * torch.linalg.norm(wanted)
    assert graphed.graphed_forward.graphs and not graphed.graphed_forward.failure_reason


@GPU
@pytest.mark.parametrize("shape", ["gemma2", "llama"])
@pytest.mark.parametrize("name", NAMES)
def test_fast_path_gives_the_plain_paths_losses_and_gradients(name, shape):
    torch.backends.cuda.matmul.allow_tf32 = False
    plain, fast = (
        build_trainable(name, shape, "eager", "cuda", fast=False),
        build_trainable(name, shape, flex_attention.NAME, "cuda"),
    )
    for lengths in (*LENGTHS, LENGTHS[0]):
        compare(gradients(plain, lengths, False), gradients(fast, lengths, True), 1e-3, 5e-3, 1e-4)
    assert fast.graphed_forward.graphs and not fast.graphed_forward.failure_reason


@GPU
@pytest.mark.parametrize("name", ["lora", "prefix_tuning"])
def test_checkpointing_is_captured(name):
    plain, fast = (
        build_trainable(name, "gemma2", "eager", "cuda", fast=False),
        build_trainable(name, "gemma2", flex_attention.NAME, "cuda", checkpointing=True),
    )
    compare(
        gradients(plain, (300, 290), False), gradients(fast, (300, 290), True), 1e-3, 5e-3, 1e-4
    )
    assert fast.graphed_forward.graphs and not fast.graphed_forward.failure_reason
