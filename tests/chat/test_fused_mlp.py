"""A gated MLP in one piece gives what the model's own code gives, on a CPU by plain arithmetic and on a GPU by its kernel."""

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
    """As if there were a kernel for this machine."""
    monkeypatch.setattr(fused_mlp, "is_supported", lambda weight: True)


def has_fused_mlp(graph: torch.fx.GraphModule) -> bool:
    return any(
        "tarazu.gated_activation" in str(part.graph)
        for part in graph.modules()
        if isinstance(part, torch.fx.GraphModule)
    )


def joined(**case):
    model = build(**case, attention=flex_attention.NAME)
    fused_lora.fuse_lora_layers(model.base)
    return model


CASES = {
    "gemma2": {"family": "gemma2"},
    "llama, unlike ranks and scales": {
        "rank_pattern": {"gate_proj": 9, "up_proj": 1, "down_proj": 7},
        "alpha_pattern": {"up_proj": 3, "gate_proj": 20},
    },
    "rslora, two steps of columns": {"r": 40, "use_rslora": True},
}


@pytest.mark.usefixtures("blocks", "anywhere")
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients_are_the_plain_paths(case, checkpointing):
    plain, one = build(**CASES[case]), joined(**CASES[case])
    assert all(
        isinstance(layer.mlp, fused_mlp.FusedMLP) for layer in one.base.model.layers
    ) and fused_mlp.has_fused_mlp(one.base)
    graphs = compile_layers(one, checkpointing)
    assert agree(gradients(one), gradients(plain))
    assert len(graphs) == 1 and has_fused_mlp(graphs[0])
    assert agree(gradients(one, (90, 41), (60, 100)), gradients(plain, (90, 41), (60, 100))), (
        "two passes before the first goes back"
    )


@pytest.mark.usefixtures("blocks", "anywhere")
def test_where_the_last_place_counts_the_sums_keep_their_order():
    one = joined()
    torch.use_deterministic_algorithms(True)
    try:
        graphs = compile_layers(one)
        gradients(one)
    finally:
        torch.use_deterministic_algorithms(False)
    assert not has_fused_mlp(graphs[0])
    gradients(one)
    assert has_fused_mlp(graphs[1]), "and are free again afterwards"


class Scaled(torch.nn.Module):
    def forward(self, x):
        return torch.nn.functional.silu(x) * 1.01


@pytest.mark.usefixtures("anywhere")
@pytest.mark.parametrize(
    "case", [{"use_dora": True}, {"biases": True}, {"r": fused_mlp.MAX_RANK + 1}]
)
def test_other_adapters_stay_apart(case):
    assert not any(
        isinstance(layer.mlp, fused_mlp.FusedMLP) for layer in joined(**case).base.model.layers
    )


@pytest.mark.usefixtures("anywhere")
@pytest.mark.parametrize(
    "act", [torch.nn.ReLU(), Scaled(), torch.nn.GELU(), torch.nn.PReLU(), torch.nn.GLU(0), None]
)
def test_an_mlp_that_computes_something_else_stays_as_it_is(act):
    model = build()
    for layer in model.base.model.layers:
        if act is None:
            layer.mlp.forward = lambda x, mlp=layer.mlp: type(mlp).forward(mlp, x) * 2
        else:
            layer.mlp.act_fn = act
    assert fused_lora.fuse_lora_layers(model.base) == 8
    assert not fused_mlp.has_fused_mlp(model.base)


def test_a_cpu_and_full_precision_have_no_kernel():
    assert not fused_mlp.is_supported(torch.ones(2, dtype=torch.bfloat16))
    assert not any(isinstance(layer.mlp, fused_mlp.FusedMLP) for layer in joined().base.model.layers)


def matrices(
    places: int, width: int, ranks: tuple[int, ...], dtype: torch.dtype, device: str
) -> list[torch.Tensor]:
    """Arguments of `gated_slopes`, lying within wider matrices as they do there, and A of the down layer."""
    torch.manual_seed(0)
    gate, up, down = ranks
    spare = -(-(gate + up) // fused_lora.RANK_ALIGNMENT) * fused_lora.RANK_ALIGNMENT
    ups = torch.zeros(2 * width, 8 + spare)
    ups[:width, 8 : 8 + gate].normal_()
    ups[width:, 8 + gate : 8 + gate + up].normal_()
    factor = torch.zeros(fused_lora.RANK_ALIGNMENT, width + 8)
    factor[:down].normal_()
    thin_slope, thin_input = (
        torch.randn(places, 8 + fused_lora.RANK_ALIGNMENT),
        torch.randn(places, 8 + spare),
    )
    whole = [
        torch.randn(places, width),
        torch.randn(places, 2 * width),
        thin_slope,
        thin_input,
        ups,
        factor,
    ]
    slope, both, thin_slope, thin_input, ups, factor = (one.to(device, dtype) for one in whole)
    return [slope, both, thin_slope[:, 8:], thin_input[:, 8:], ups[:, 8:], factor[:, :width]]


@GPU
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("gelu", [True, False])
@pytest.mark.parametrize(
    ("places", "width", "ranks"),
    [
        (512, 9216, (16, 16, 16)),
        (1100, 200, (4, 7, 16)),
        (70, 1000, (64, 33, 1)),
        (300, 520, (32, 17, 32)),
        (4608, 512, (16, 16, 40)),
    ],
)
def test_the_kernel_computes_what_the_plain_arithmetic_does(places, width, ranks, gelu, dtype):
    slope, both, thin_slope, thin_input, ups, factor = matrices(places, width, ranks, dtype, "cuda")
    found = [
        *torch.ops.tarazu.gated_activation(both, factor, gelu, ranks[2]),
        *torch.ops.tarazu.gated_activation_backward(slope, both, thin_slope, thin_input, ups, gelu, list(ranks)),
    ]
    slope, both, thin_slope, thin_input, ups, factor = (
        one.cpu().float() for one in (slope, both, thin_slope, thin_input, ups, factor)
    )
    wanted = [
        *torch.ops.tarazu.gated_activation(both, factor, gelu, ranks[2]),
        *torch.ops.tarazu.gated_activation_backward(slope, both, thin_slope, thin_input, ups, gelu, list(ranks)),
    ]
    for mine, plain in zip(found, wanted, strict=True):
        assert mine.shape == plain.shape and torch.isfinite(mine).all()
        for a, b in zip(
            mine.cpu().float().split(width, 1), plain.split(width, 1), strict=True
        ):  # the thin columns by themselves
            assert (a - b).norm() <= 8e-3 * b.norm()
