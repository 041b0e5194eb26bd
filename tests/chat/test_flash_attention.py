"""FlashAttention with row boundaries equals attention with a mask; kernels are tested on a GPU."""

from __future__ import annotations

import pytest
import torch
from chat.test_flex_attention import gradients
from chat.test_methods import build, close, rows
from chat.tiny import FAMILIES
from torch._dynamo.testing import CompileCounterWithBackend

from tarazu.chat.fast import compile_layers
from tarazu.chat.model import flash_attention, flex_attention
from tarazu.chat.model.batching import MIN_CU_SEQLENS, bin_pack, make_batch, make_cu_seqlens
from tarazu.chat.model.forward import hidden_states
from tarazu.chat.model.loss import token_losses

LONG_WINDOW = 512  # longer than any row


def attention_weights(query, key, cu_seqlens, scaling, softcap):
    """Attention weights and derivative of the cap, (heads, T, T), and log-sums (heads, T)."""
    key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
    index = torch.arange(query.shape[0])
    row = torch.bucketize(index, cu_seqlens, right=True)
    scores = torch.einsum("qhd,khd->hqk", query, key) * scaling
    capped = torch.tanh(scores / softcap) if softcap else torch.zeros_like(scores)
    scores = (softcap * capped if softcap else scores).masked_fill(
        (row[:, None] != row) | (index > index[:, None]), float("-inf")
    )
    return scores.softmax(-1), scores.logsumexp(-1), 1 - capped**2


def plain(query, key, value, cu_seqlens, scaling, softcap):
    """The forward operator in plain PyTorch: causal attention within rows."""
    weights, sums, _ = attention_weights(query, key, cu_seqlens, scaling, softcap)
    return torch.einsum(
        "hqk,khd->qhd", weights, value.repeat_interleave(query.shape[1] // key.shape[1], 1)
    ).contiguous(), sums


def plain_backward(query, key, value, _out, grad, _sums, cu_seqlens, scaling, softcap):
    """The backward operator in plain PyTorch, by hand: inside an operator there is no autograd."""
    repeats = query.shape[1] // key.shape[1]
    weights, _, cap_derivative = attention_weights(query, key, cu_seqlens, scaling, softcap)
    grad_weights = torch.einsum("qhd,khd->hqk", grad, value.repeat_interleave(repeats, 1))
    grad_scores = (
        weights
        * (grad_weights - (weights * grad_weights).sum(-1, keepdim=True))
        * cap_derivative
        * scaling
    )
    per_head = [
        torch.einsum("hqk,qhd->khd", grad_scores, query),
        torch.einsum("hqk,qhd->khd", weights, grad),
    ]
    grad_key, grad_value = (x.unflatten(1, (-1, repeats)).sum(2) for x in per_head)
    return (
        torch.einsum("hqk,khd->qhd", grad_scores, key.repeat_interleave(repeats, 1)).contiguous(),
        grad_key,
        grad_value,
    )


@pytest.fixture
def arithmetic(monkeypatch):
    """Run the operators on a CPU, in float32."""
    flash_attention._forward.register_kernel("cpu")(plain)
    flash_attention._backward.register_kernel("cpu")(plain_backward)
    monkeypatch.setattr(flash_attention, "HALF_DTYPES", (torch.float32,))


@pytest.mark.parametrize(
    ("virtual", "packed", "left", "width"),
    [(0, True, False, 128), (3, True, False, None), (0, False, False, None), (2, False, True, 40)],
)
def test_cu_seqlens_are_the_starts_of_rows(virtual, packed, left, width):
    for lines in bin_pack(rows((9, 17, 5, 23)), 90, virtual, packed):
        batch = make_batch(lines, virtual, pad_left=left, width=width, with_cu_seqlens=True)
        num_positions = batch.ids.numel()
        ends = batch.cu_seqlens.diff()
        assert (
            batch.cu_seqlens[0] == 0
            and (ends >= 0).all()
            and (batch.cu_seqlens >= num_positions).any()
            and len(batch.cu_seqlens) >= MIN_CU_SEQLENS
        )
        row = torch.bucketize(torch.arange(num_positions), batch.cu_seqlens, right=True)
        # Numbers that differ between rows and lines; the padding of a line is a row, too.
        segments = (batch.segments + 1 + 1000 * torch.arange(len(lines))[:, None]).flatten()
        assert torch.equal(row[:, None] == row, segments[:, None] == segments)


def test_cu_seqlens_has_few_different_lengths():
    assert len({len(make_cu_seqlens(list(range(n)), 1000)) for n in range(1, 200)}) == 4
    assert (
        make_cu_seqlens(list(range(31)), 99)[-1] == 99
        and len(make_cu_seqlens(list(range(32)), 99)) == 64
    )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["lora", "dora", "prompt_tuning", "layers"])
def test_cu_seqlens_attention_equals_the_models_own(name, family, arithmetic):
    model, by_mask = (
        build(name, family, attention=flex_attention.NAME, window=LONG_WINDOW),
        build(name, family, window=LONG_WINDOW),
    )
    lines = bin_pack(rows(), 200, model.num_virtual_tokens, True)[0]
    actual = []
    for one, cu_seqlens in ((model, True), (by_mask, False)):
        batch = make_batch(lines, one.num_virtual_tokens, width=128, with_cu_seqlens=cu_seqlens)
        values = token_losses(
            one.base, hidden_states(one, batch).flatten(0, 1)[batch.label_positions], batch.labels
        )
        values.sum().backward()
        actual.append(({0: values.tolist()}, {key: p.grad for key, p in one.trainable().items()}))
    assert close(actual[0][0], actual[1][0])
    assert all(
        torch.allclose(actual[0][1][key], wanted, atol=1e-4, rtol=1e-3)
        for key, wanted in actual[1][1].items()
    )


@pytest.mark.parametrize("family", ["gemma2", "llama"])
def test_compiled_layers_take_cu_seqlens(family, arithmetic, monkeypatch):
    """The operators compile once for all widths, with their backward pass and checkpointing."""
    expected = gradients(build("lora", family, window=LONG_WINDOW))
    for checkpointing in (False, True):
        torch._dynamo.reset()
        counted = CompileCounterWithBackend("aot_eager")
        model = build("lora", family, attention=flex_attention.NAME, window=LONG_WINDOW)
        for layer in model.base.get_decoder().layers:
            layer.self_attn.sliding_window = None  # as `compile_layers` does
        compile_layers.wrap_layers(
            model.base,
            checkpointing,
            lambda forward, counted=counted: torch.compile(forward, backend=counted),
        )
        for width in (256, 384, 512):
            monkeypatch.setattr(
                "chat.test_flex_attention.make_batch",
                lambda *a, width=width, **more: make_batch(*a, width=width, with_cu_seqlens=True),
            )
            model.module.zero_grad()
            actual = gradients(model)
            assert all(
                torch.allclose(actual[key], wanted, atol=1e-4, rtol=1e-3)
                for key, wanted in expected.items()
            )
        assert counted.frame_count == 1


def test_unavailable_reason_names_the_gpu():
    config = build("base", "llama").base.config
    assert "Hopper" in flash_attention.unavailable_reason(
        config, torch.bfloat16, torch.device("cpu"), 100, 0
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(
    ("heads", "shared", "size", "softcap"), [(8, 4, 256, 50.0), (24, 8, 128, 0.0)]
)
def test_kernels_equal_plain_pytorch(heads, shared, size, softcap):
    if reason := flash_attention.unavailable_reason(
        build("base", "llama").base.config, torch.bfloat16, torch.device("cuda"), 100, 0
    ):
        pytest.skip(reason)
    torch.manual_seed(0)
    cu_seqlens = torch.from_numpy(make_cu_seqlens([0, 9, 200, 201, 700], 1024))
    inputs = [torch.randn(1024, n, size, dtype=torch.bfloat16) for n in (heads, shared, shared)]
    grad = torch.randn(1024, heads, size, dtype=torch.bfloat16)
    own = [x.cuda().requires_grad_() for x in inputs]
    out, _ = torch.ops.tarazu.flash_forward(*own, cu_seqlens.cuda(), size**-0.5, softcap)
    actual = [out, *torch.autograd.grad(out, own, grad.cuda())]
    exact = [x.float() for x in inputs]
    wanted = [
        plain(*exact, cu_seqlens, size**-0.5, softcap)[0],
        *plain_backward(*exact, None, grad.float(), None, cu_seqlens, size**-0.5, softcap),
    ]
    for mine, true in zip(actual, wanted, strict=True):
        assert (mine.detach().cpu().float() - true).norm() < 0.01 * true.norm()
