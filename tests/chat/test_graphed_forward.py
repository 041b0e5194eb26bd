"""Recorded passes against launched ones: of plain layers, and of the whole fast path (compiled layers, blocks, lightweight adapters)."""

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
from tarazu.chat.model import building
from tarazu.chat.prepared_data import ChatData
from tarazu.chat.fast import graphed_forward
from tarazu.chat.model import flex_attention, forward
from tarazu.chat.model.batching import TokenizedRow, bin_pack, make_batch, pack_rows
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
LENGTHS = (
    (280, 250, 170, 77, 60),
    (200, 60),
)  # packed: one line each, of two widths, virtual tokens or not
FEW = ((150, 60), (90,))  # the same on a CPU


def made(
    name: str,
    shape: str,
    attention: str,
    device: str,
    checkpointing: bool = False,
    fast: bool = True,
    **settings,
):
    """One method on a tiny model, its trained tensors off their start."""
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
    """Of rows of these lengths, in passes of at most 1,024 places; packed ones as wide as on a GPU."""
    rows = [
        TokenizedRow(np.random.default_rng(i).integers(3, 512, n), np.arange(n) > n // 3, i)
        for i, n in enumerate(lengths)
    ]
    device, prefix = trainable.base.device, trainable.prefix_length
    total = torch.zeros((), device=device)
    virtual = trainable.prompt_length
    for some, width, _ in (
        pack_rows(rows, 1024, virtual)
        if packed
        else [(lines, None, 0) for lines in bin_pack(rows, 1024, virtual, False)]
    ):
        loss = (
            task.Chat()
            .loss(trainable, make_batch(some, virtual, prefix, width=width).to(device))
            .total
        )
        loss.backward()
        total += loss.detach()
        del loss  # its graph would spoil a recording
    found = {n: p.grad.clone() for n, p in trainable.trainable().items() if p.grad is not None}
    trainable.module.zero_grad(set_to_none=True)
    return float(total), found


def compare(one: tuple, other: tuple, loss: float, relative: float, least: float) -> None:
    assert abs(one[0] - other[0]) < loss * abs(one[0])
    for key, value in one[1].items():
        assert (
            torch.linalg.norm(other[1][key] - value) < relative * torch.linalg.norm(value) + least
        ), key


class HostWatched(TorchDispatchMode):
    """Notes every operation that touches the host's memory, while everything else lies on the meta device."""

    def __init__(self):
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if any(
            isinstance(x, torch.Tensor) and x.device.type == "cpu"
            for x in tree_leaves((args, kwargs, out))
        ):
            self.found.append(str(function))
        return out


def watched(name: str, shape: str, attention: str, **settings) -> list[str]:
    """What a pass and its backward pass ask of the host, on a model without weights."""
    with torch.device("meta"):
        trainable = made(name, shape, attention, "meta", **settings)
    trainable.module.to("meta")
    prefix = trainable.prefix_length
    rows = [TokenizedRow(np.full(n, 7), np.arange(n) > 3, i) for i, n in enumerate((100, 90, 60))]
    batch = make_batch([rows], trainable.prompt_length, prefix, width=384)
    batch = [getattr(batch, key).to("meta") for key in ("ids", "virtual_indices", "positions", "segments")]
    for first in filter(None, (trainable.prompt, trainable.prefix)):
        first()  # moves its indices once, as the warm-up does
    with HostWatched() as watch:
        out = graphed_forward.make_graphed_forward(trainable).work(*batch, 0)[0]
        torch.autograd.grad(
            out, list(trainable.trainable().values()), torch.ones_like(out), allow_unused=True
        )
    return watch.found


@pytest.mark.parametrize(("shape", "attention"), PLAIN)
@pytest.mark.parametrize("name", NAMES)
def test_a_plain_pass_asks_nothing_of_the_host(name, shape, attention):
    assert not watched(name, shape, attention)


@pytest.mark.parametrize("name", ["lora", "dora"])
def test_dropout_asks_nothing_of_the_host(name):
    assert not watched(name, "gemma3", "sdpa", dropout=0.1)


def test_the_watch_sees_a_draw_on_the_host():
    assert "aten.rand.default" in watched("loha", "llama", "sdpa", dropout=0.1)


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(recorder, "warm_up", lambda work, space: work())
    monkeypatch.setattr(recorder, "capture", by_running)
    monkeypatch.setattr(
        torch.cuda, "is_available", lambda: False
    )  # where there is one, its memory must not be taken for nothing


@pytest.mark.parametrize(
    ("name", "shape", "attention"),
    [*((name, "gemma3", "sdpa") for name in NAMES), ("prefix_tuning", "gemma2", "eager")],
)
def test_a_plain_pass_that_is_played_gives_what_a_launched_one_gives(
    name, shape, attention, no_gpu
):
    launched, played = made(name, shape, attention, "cpu"), made(name, shape, attention, "cpu")
    played.graphed_forward = graphed_forward.make_graphed_forward(played)
    for lengths in (*FEW, *FEW, *FEW):
        compare(
            gradients(launched, lengths, True), gradients(played, lengths, True), 1e-5, 1e-4, 1e-5
        )
    assert len(played.graphed_forward.graphs) == 2 and not played.graphed_forward.failure_reason
    gradients(played, (128, 128), False)
    assert len(played.graphed_forward.graphs) == 2  # padded rows have any shape


def widths(trainable) -> list[int]:
    """Of its recordings, in the order in which they were made."""
    return [recording.inputs[0].shape[1] for recording in trainable.graphed_forward.graphs.values()]


def test_narrow_recordings_lie_where_a_wide_one_does(no_gpu):
    """So the widest is made first where it is known to come, and else all begin anew with it."""
    launched, played = made("lora", "gemma3", "sdpa", "cpu"), made("lora", "gemma3", "sdpa", "cpu")
    played.graphed_forward = graphed_forward.make_graphed_forward(played)
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
        found = []
        for trainable in (launched, played):
            loss = task.Chat().loss(trainable, batch).total
            loss.backward()
            found.append(
                (
                    float(loss.detach()),
                    {n: p.grad.clone() for n, p in trainable.trainable().items()},
                )
            )
            trainable.module.zero_grad(set_to_none=True)
        compare(*found, 1e-5, 1e-4, 1e-5)
        assert widths(played) == expected


def test_the_widest_lines_edges_end_where_it_does():
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
    stretched = graphed_forward._padded_to_widest(batch)
    assert stretched.ids.shape == stretched.segments.shape == (1, 384)
    assert (
        stretched.cu_seqlens[:4].tolist() == [0, 70, 120, 384]
        and stretched.cu_seqlens.dtype == batch.cu_seqlens.dtype
        and len(stretched.cu_seqlens) == len(batch.cu_seqlens)
    )


def test_dropout_on_the_host_is_not_recorded(no_gpu):
    played = made("loha", "llama", "sdpa", "cpu", dropout=0.1)
    played.graphed_forward = graphed_forward.make_graphed_forward(played)
    for _ in range(3):
        before = torch.get_rng_state()
        gradients(played, FEW[1], True)
        assert not torch.equal(before, torch.get_rng_state())
    assert "drawn on the host" in played.graphed_forward.failure_reason and not played.graphed_forward.graphs
    assert (
        "drawn on the host"
        in task.Chat().code_paths(played, ChatData(None, None, None, [], True))["layers"]
    )


def test_a_nudge_is_felt_though_a_recording_was_made_without_it(no_gpu):
    played = made("lora", "llama", "sdpa", "cpu")
    played.graphed_forward = graphed_forward.make_graphed_forward(played)
    before = [gradients(played, FEW[1], True)[0] for _ in range(3)]
    with perturbations.embeddings_perturbed(played.module, 0.05):
        moved = [gradients(played, FEW[1], True)[0] for _ in range(3)]
    after = [gradients(played, FEW[1], True)[0] for _ in range(3)]
    assert (
        np.allclose(before, after, rtol=1e-6)
        and min(abs(m - before[0]) for m in moved) > 1e-4 * before[0]
    )


@GPU
@pytest.mark.parametrize(("shape", "attention"), PLAIN)
@pytest.mark.parametrize("name", NAMES)
def test_plain_layers_are_recorded_on_a_gpu(name, shape, attention):
    torch.backends.cuda.matmul.allow_tf32 = False
    launched, played = made(name, shape, attention, "cuda"), made(name, shape, attention, "cuda")
    launched.graphed_forward = None
    for lengths in (*LENGTHS, *LENGTHS, *LENGTHS):
        compare(
            gradients(launched, lengths, True), gradients(played, lengths, True), 1e-5, 1e-3, 1e-4
        )
    padded = gradients(launched, LENGTHS[1], False), gradients(played, LENGTHS[1], False)
    compare(*padded, 1e-5, 1e-3, 1e-4)  # launched by both, beside what is recorded
    assert not played.graphed_forward.failure_reason and len(played.graphed_forward.graphs) == 2


@GPU
def test_an_lstm_before_the_model_is_recorded_or_launched_but_right():
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    launched, played = (
        made("p_tuning", "gemma3", "sdpa", "cuda", encoder="LSTM") for _ in range(2)
    )
    launched.graphed_forward = None
    for _ in range(4):
        compare(
            gradients(launched, LENGTHS[1], True),
            gradients(played, LENGTHS[1], True),
            1e-5,
            1e-3,
            1e-4,
        )
    assert bool(played.graphed_forward.graphs) != bool(played.graphed_forward.failure_reason), played.graphed_forward.failure_reason


@GPU
@pytest.mark.parametrize(
    "settings", [{"dropout": 0.3}, {"checkpointing": True}, {"dropout": 0.3, "checkpointing": True}]
)
def test_dropout_and_checkpointing_of_plain_layers_on_a_gpu(settings):
    torch.backends.cuda.matmul.allow_tf32 = False
    launched, played = (made("lora", "gemma3", "sdpa", "cuda", **settings) for _ in range(2))
    launched.graphed_forward, losses = None, []
    for seed in range(5):
        found = []
        for trainable in (launched, played):
            torch.manual_seed(seed)
            found.append(gradients(trainable, LENGTHS[1], True))
        compare(*found, 1e-5, 1e-3, 1e-4)  # the dice fall alike
        losses.append(found[1][0])
    assert len(set(losses)) == 5 or "dropout" not in settings
    assert len(settings) == 2 or played.graphed_forward.graphs, (
        played.graphed_forward.failure_reason
    )  # dice that are kept for going back may forbid it


@GPU
def test_a_pass_of_plain_layers_in_bfloat16_is_recorded():
    launched, played = (
        made("dora", "gemma3", "sdpa", "cuda"),
        made("dora", "gemma3", "sdpa", "cuda"),
    )
    launched.graphed_forward = None
    with torch.autocast("cuda", torch.bfloat16):
        batch = make_batch([[TokenizedRow(np.arange(200) + 3, np.arange(200) > 3)]], width=256).to(
            torch.device("cuda")
        )
        half = replace(
            batch, segments=torch.where(torch.arange(256, device="cuda") < 100, 0, 1)[None]
        )
        for one in (batch, batch, half, batch):
            found = (
                graphed_forward.hidden_states(played, one).detach().float()
            )  # a graph that is kept would spoil the recording
            assert torch.linalg.norm(
                found - (wanted := forward.hidden_states(launched, one).detach().float())
            ) < 1e-2 * torch.linalg.norm(wanted)
    assert played.graphed_forward.graphs and not played.graphed_forward.failure_reason


@GPU
@pytest.mark.parametrize("shape", ["gemma2", "llama"])
@pytest.mark.parametrize("name", NAMES)
def test_recorded_passes_give_the_plain_paths_losses_and_gradients(name, shape):
    torch.backends.cuda.matmul.allow_tf32 = False
    plain, fast = (
        made(name, shape, "eager", "cuda", fast=False),
        made(name, shape, flex_attention.NAME, "cuda"),
    )
    for lengths in (*LENGTHS, LENGTHS[0]):
        compare(gradients(plain, lengths, False), gradients(fast, lengths, True), 1e-3, 5e-3, 1e-4)
    assert fast.graphed_forward.graphs and not fast.graphed_forward.failure_reason


@GPU
@pytest.mark.parametrize("name", ["lora", "prefix_tuning"])
def test_checkpointing_can_be_recorded(name):
    plain, fast = (
        made(name, "gemma2", "eager", "cuda", fast=False),
        made(name, "gemma2", flex_attention.NAME, "cuda", checkpointing=True),
    )
    compare(
        gradients(plain, (300, 290), False), gradients(fast, (300, 290), True), 1e-3, 5e-3, 1e-4
    )
    assert fast.graphed_forward.graphs and not fast.graphed_forward.failure_reason
