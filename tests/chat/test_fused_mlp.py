"""A fused MLP equals the model's own: in plain PyTorch on a CPU, and with its kernel on a GPU."""

from __future__ import annotations

import pytest
import torch
from chat.test_fused_lora import agree, blocks, build, compile_layers, gradients
from chat.test_graphed_forward import GPU

from tarazu.chat.fast import fused_lora, fused_mlp
from tarazu.chat.model import flex_attention

__all__ = ["blocks"]  # a fixture


@pytest.fixture
def anywhere(monkeypatch):
    """Pretend that this machine has a kernel."""
    monkeypatch.setattr(fused_mlp, "is_supported", lambda weight: True)


def has_fused_mlp(graph: torch.fx.GraphModule) -> bool:
    return any(
        "tarazu.gated_activation" in str(part.graph)
        for part in graph.modules()
        if isinstance(part, torch.fx.GraphModule)
    )


def build_fused(**case):
    model = build(**case, attention=flex_attention.NAME)
    fused_lora.fuse_lora_layers(model.base)
    return model


CASES = {
    "gemma2": {"family": "gemma2"},
    "llama, different ranks and scales": {
        "rank_pattern": {"gate_proj": 9, "up_proj": 1, "down_proj": 7},
        "alpha_pattern": {"up_proj": 3, "gate_proj": 20},
    },
    "rslora, twice the aligned rank": {"r": 40, "use_rslora": True},
}


@pytest.mark.usefixtures("blocks", "anywhere")
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients_are_the_plain_paths(case, checkpointing):
    plain, fused = build(**CASES[case]), build_fused(**CASES[case])
    assert all(
        isinstance(layer.mlp, fused_mlp.FusedMLP) for layer in fused.base.model.layers
    ) and fused_mlp.has_fused_mlp(fused.base)
    graphs = compile_layers(fused, checkpointing)
    assert agree(gradients(fused), gradients(plain))
    assert len(graphs) == 1 and has_fused_mlp(graphs[0])
    assert agree(gradients(fused, (90, 41), (60, 100)), gradients(plain, (90, 41), (60, 100))), (
        "two forward passes before a backward pass"
    )


@pytest.mark.usefixtures("blocks", "anywhere")
def test_deterministic_algorithms_turn_fusing_off():
    fused = build_fused()
    torch.use_deterministic_algorithms(True)
    try:
        graphs = compile_layers(fused)
        gradients(fused)
    finally:
        torch.use_deterministic_algorithms(False)
    assert not has_fused_mlp(graphs[0])
    gradients(fused)
    assert has_fused_mlp(graphs[1]), "and on again afterwards"


class Scaled(torch.nn.Module):
    def forward(self, x):
        return torch.nn.functional.silu(x) * 1.01


@pytest.mark.usefixtures("anywhere")
@pytest.mark.parametrize(
    "case", [{"use_dora": True}, {"biases": True}, {"r": fused_mlp.MAX_RANK + 1}]
)
def test_other_adapters_are_not_fused(case):
    assert not any(
        isinstance(layer.mlp, fused_mlp.FusedMLP) for layer in build_fused(**case).base.model.layers
    )


@pytest.mark.usefixtures("anywhere")
@pytest.mark.parametrize(
    "act", [torch.nn.ReLU(), Scaled(), torch.nn.GELU(), torch.nn.PReLU(), torch.nn.GLU(0), None]
)
def test_other_activations_and_mlps_are_not_fused(act):
    model = build()
    for layer in model.base.model.layers:
        if act is None:
            layer.mlp.forward = lambda x, mlp=layer.mlp: type(mlp).forward(mlp, x) * 2
        else:
            layer.mlp.act_fn = act
    assert fused_lora.fuse_lora_layers(model.base) == 8
    assert not fused_mlp.has_fused_mlp(model.base)


def test_no_kernel_on_a_cpu():
    assert not fused_mlp.is_supported(torch.ones(2, dtype=torch.bfloat16))
    assert not fused_mlp.has_fused_mlp(build_fused().base)


def kernel_arguments(
    num_rows: int, width: int, ranks: tuple[int, ...], dtype: torch.dtype, device: str
) -> list[torch.Tensor]:
    """Arguments of `gated_activation_backward`, as views of wider matrices, and A of down."""
    torch.manual_seed(0)
    gate, up, down = ranks
    spare = -(-(gate + up) // fused_lora.RANK_ALIGNMENT) * fused_lora.RANK_ALIGNMENT
    lora_b = torch.zeros(2 * width, 8 + spare)
    lora_b[:width, 8 : 8 + gate].normal_()
    lora_b[width:, 8 + gate : 8 + gate + up].normal_()
    lora_a = torch.zeros(fused_lora.RANK_ALIGNMENT, width + 8)
    lora_a[:down].normal_()
    grad_a, input_a = (
        torch.randn(num_rows, 8 + fused_lora.RANK_ALIGNMENT),
        torch.randn(num_rows, 8 + spare),
    )
    tensors = [
        torch.randn(num_rows, width),
        torch.randn(num_rows, 2 * width),
        grad_a,
        input_a,
        lora_b,
        lora_a,
    ]
    grad, gate_up, grad_a, input_a, lora_b, lora_a = (
        tensor.to(device, dtype) for tensor in tensors
    )
    return [grad, gate_up, grad_a[:, 8:], input_a[:, 8:], lora_b[:, 8:], lora_a[:, :width]]


@GPU
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("gelu", [True, False])
@pytest.mark.parametrize(
    ("num_rows", "width", "ranks"),
    [
        (512, 9216, (16, 16, 16)),
        (1100, 200, (4, 7, 16)),
        (70, 1000, (64, 33, 1)),
        (300, 520, (32, 17, 32)),
        (4608, 512, (16, 16, 40)),
    ],
)
def test_kernel_equals_plain_pytorch(num_rows, width, ranks, gelu, dtype):
    def run(grad, gate_up, grad_a, input_a, lora_b, lora_a) -> list[torch.Tensor]:
        ops = torch.ops.tarazu
        rest = (grad_a, input_a, lora_b, gelu, list(ranks))
        return [
            *ops.gated_activation(gate_up, lora_a, gelu, ranks[2]),
            *ops.gated_activation_backward(grad, gate_up, *rest),
        ]

    on_gpu = kernel_arguments(num_rows, width, ranks, dtype, "cuda")
    actual = run(*on_gpu)
    expected = run(*(tensor.cpu().float() for tensor in on_gpu))
    for mine, plain in zip(actual, expected, strict=True):
        assert mine.shape == plain.shape and torch.isfinite(mine).all()
        # Compare the low-rank columns by themselves.
        parts = zip(mine.cpu().float().split(width, 1), plain.split(width, 1), strict=True)
        assert all((a - b).norm() <= 8e-3 * b.norm() for a, b in parts)
