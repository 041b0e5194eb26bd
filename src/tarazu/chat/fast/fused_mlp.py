"""A gated MLP with LoRA on its three layers as one function: down(act(gate x) * up x).

`fused_lora.py` makes two large products of it, each with the adapters inside. This file computes
what lies between them. Forward: act(gate) * up, together with its product with A of the down
layer. Backward: one pass over the matrices gives the gradients of gate and up and all five
low-rank products that need them (three above rank 32); act(gate) * up is recomputed instead of
kept, which saves a seventh of Gemma-2-2B's memory. On a GPU `fused_mlp_triton.py` does this; the
code here computes the same in plain PyTorch. Tests compare both with the model's own MLP.
"""

from __future__ import annotations

from functools import cache, partial
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from tarazu.chat.fast.fused_lora_ops import append_low_rank

MAX_RANK = 64  # columns that the kernel holds at a time
# Compute capabilities (major) with a kernel: Hopper and Blackwell for data centres. Its tiles take
# 96 to 164 KiB of shared memory, which other GPUs do not have.
GPU_GENERATIONS = (9, 10)
PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


class FusedMLP(nn.Module):
    """An MLP of one gate, one up and one down layer, which hold LoRA and are fused with each other.

    It takes the place of the model's own MLP and keeps the names of its children.

    Args:
        mlp: the model's MLP; its children are used, not copied.
        gelu: the activation is GELU (tanh approximation), else SiLU.
    """

    def __init__(self, mlp: nn.Module, gelu: bool):
        super().__init__()
        for name, child in mlp.named_children():
            self.add_module(name, child)
        self.act_fn = mlp.act_fn  # a plain function in some models
        self.gelu = gelu
        self.training = mlp.training

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., width) -> (..., width). Fused in compiled training, else layer by layer."""
        layers = (self.gate_proj, self.up_proj, self.down_proj)
        alone = any(layer.falls_back(x) for layer in layers)
        # The kernel sums in no fixed order.
        if alone or torch.are_deterministic_algorithms_enabled():
            return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))
        gate_up, down = self.gate_proj.group, self.down_proj.group
        return FusedGatedMLPFunction.apply(
            x,
            gate_up.matrix,
            down.matrix,
            gate_up.scales,
            down.scales,
            self.gelu,
            *gate_up.factors(),
            *down.factors(),
        )


def fuse_mlps(model: nn.Module) -> None:
    """Replace each MLP of `model` that `FusedMLP` can compute; the model is changed in place.

    Args:
        model: a model whose LoRA layers were fused by `fused_lora.fuse_lora_layers`.
    """
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            kind = _fusible_activation(child)
            if kind is not None:
                setattr(parent, name, FusedMLP(child, gelu=kind == "gelu"))


def has_fused_mlp(model: nn.Module) -> bool:
    """Whether some MLP of `model` was replaced."""
    return any(isinstance(module, FusedMLP) for module in model.modules())


def is_supported(weight: torch.Tensor) -> bool:
    """Whether the kernel runs with such weights: 16 bits on an NVIDIA GPU (tried on an H100)."""
    if not weight.is_cuda or torch.version.cuda is None or find_spec("triton") is None:
        return False
    major, _ = torch.cuda.get_device_capability(weight.device)
    return weight.dtype in (torch.bfloat16, torch.float16) and major in GPU_GENERATIONS


def _fusible_activation(mlp: nn.Module) -> str | None:
    """ "gelu" or "silu" if `mlp` is an MLP that can be fused, else None."""
    groups = [getattr(getattr(mlp, name, None), "group", None) for name in PROJECTIONS]
    if None in groups or groups[0] is not groups[1]:
        return None
    if any(group.squares is not None for group in groups):  # DoRA
        return None
    for layer in [*groups[0].layers, *groups[2].layers]:
        if layer.base_layer.bias is not None or layer.r[layer.active_adapters[0]] > MAX_RANK:
            return None
    kind = _activation_kind(getattr(mlp, "act_fn", None))
    if kind is None or not is_supported(groups[0].matrix) or not _is_plain(mlp):
        return None
    return kind


def _activation_kind(function: Any) -> str | None:
    """Which activation of the kernel a function is, by its values."""
    if not callable(function) or (isinstance(function, nn.Module) and function.state_dict()):
        return None  # it has parameters
    x = torch.linspace(-6, 6, 98)
    values = function(x)
    expected = {"silu": F.silu(x), "gelu": F.gelu(x, approximate="tanh")}
    for kind, wanted in expected.items():
        if values.shape == x.shape and torch.allclose(values, wanted, atol=1e-6):
            return kind
    return None


@torch.no_grad()
def _is_plain(mlp: nn.Module) -> bool:
    """Whether `mlp` computes down(act(gate x) * up x) and nothing else, such as a norm or
    dropout."""
    children = {name for name, _ in mlp.named_children()}
    if not children <= {*PROJECTIONS, "act_fn"}:
        return False
    weight = mlp.gate_proj.base_layer.weight
    x = torch.linspace(-1, 1, weight.shape[1], device=weight.device, dtype=weight.dtype)[None, None]
    return torch.equal(mlp(x), mlp.down_proj(mlp.act_fn(mlp.gate_proj(x)) * mlp.up_proj(x)))


class FusedGatedMLPFunction(torch.autograd.Function):
    """The fused MLP: (x (..., in), matrices, scales, gelu, factors) -> (..., out).

    Matrices and scales are those of `fused_lora.FusedGroup`, of gate with up and of down. The
    factors are A and B of gate, up and down; they are arguments because they get the gradients.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        gate_up_matrix: torch.Tensor,
        down_matrix: torch.Tensor,
        gate_up_scales: torch.Tensor,
        down_scales: torch.Tensor,
        gelu: bool,
        *factors: torch.Tensor,
    ) -> torch.Tensor:
        """(..., width) -> (..., out)."""
        width, hidden_size, out_size = x.shape[-1], factors[4].shape[1], factors[5].shape[0]
        # [x, x A'] of gate and up, then both layers' outputs side by side.
        inputs = append_low_rank([x.reshape(-1, width)], gate_up_matrix[2 * hidden_size :, :width])
        gate_up = inputs @ gate_up_matrix[: 2 * hidden_size].T
        # [h, h A'] for h = act(gate) * up; h itself is not saved.
        down_a = down_matrix[out_size:, :hidden_size]
        hidden, hidden_a = torch.ops.tarazu.gated_activation(
            gate_up, down_a, gelu, factors[4].shape[0]
        )
        ctx.save_for_backward(
            inputs,
            gate_up,
            hidden_a,
            gate_up_matrix,
            down_matrix,
            gate_up_scales,
            down_scales,
            *factors,
        )
        ctx.gelu = gelu
        return (hidden @ down_matrix[:out_size].T).view(*x.shape[:-1], out_size)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients (..., width) of x, and of each A (r, in) and B (out, r)."""
        inputs, gate_up, hidden_a, gate_up_matrix, down_matrix, *rest = ctx.saved_tensors
        gate_up_scales, down_scales, *factors = rest
        gate_rank, up_rank, down_rank = ranks = [lora_a.shape[0] for lora_a in factors[::2]]
        width, hidden_size, out_size = factors[0].shape[1], factors[4].shape[1], grad.shape[-1]
        # Through the down layer: [g, s g B], then the gradient of h.
        grad_out = append_low_rank(
            [grad.reshape(-1, out_size)], down_matrix[:out_size, hidden_size:].T
        )
        grad_hidden = grad_out @ down_matrix[:, :hidden_size]
        # Through the activation: [d, s d B] for d, the gradients of gate and up side by side.
        grad_gate_up, grad_gate_b, grad_up_b, grad_down_a = (
            torch.ops.tarazu.gated_activation_backward(
                grad_hidden,
                gate_up,
                grad_out[:, out_size:],
                inputs[:, width:],
                gate_up_matrix[: 2 * hidden_size, width:],
                ctx.gelu,
                ranks,
            )
        )
        # The remaining factors' gradients need no activation.
        grad_a = grad_gate_up[:, 2 * hidden_size :].T @ inputs[:, :width]
        grad_down_b = grad_out[:, :out_size].T @ hidden_a
        grad_factors = [
            grad_a[:gate_rank],
            grad_gate_b * gate_up_scales[0],
            grad_a[gate_rank : gate_rank + up_rank],
            grad_up_b * gate_up_scales[1],
            grad_down_a,
            grad_down_b[:, :down_rank] * down_scales[0],
        ]
        return (
            (grad_gate_up @ gate_up_matrix[:, :width]).view(*grad.shape[:-1], width),
            *[None] * 5,
            *(g.to(factor.dtype) for g, factor in zip(grad_factors, factors, strict=True)),
        )


@torch.library.custom_op("tarazu::gated_activation", mutates_args=())
def _forward(
    gate_up: torch.Tensor, lora_a: torch.Tensor, gelu: bool, rank: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """h = act(gate) * up and its product with A of the down layer.

    Args:
        gate_up: (T, 2 hidden), gate beside up.
        lora_a: (spare, hidden), A and zeros below it.
        gelu: the activation is GELU (tanh approximation), else SiLU.
        rank: rows of A.

    Returns:
        [h, h A'] (T, hidden + spare), and h A' (T, spare) alone.
    """
    if gate_up.is_cuda:
        return _kernel_module().forward(gate_up, lora_a, gelu, rank)
    gate, up = gate_up.float().chunk(2, 1)
    hidden = (_activation(gate, gelu) * up).to(gate_up.dtype)  # rounded once
    hidden_a = hidden @ lora_a.T
    return torch.cat([hidden, hidden_a], 1), hidden_a


@_forward.register_fake
def _(
    gate_up: torch.Tensor, lora_a: torch.Tensor, gelu: bool, rank: int
) -> tuple[torch.Tensor, torch.Tensor]:
    rows, (spare, hidden_size) = gate_up.shape[0], lora_a.shape
    return gate_up.new_empty(rows, hidden_size + spare), gate_up.new_empty(rows, spare)


@torch.library.custom_op("tarazu::gated_activation_backward", mutates_args=())
def _backward(
    grad: torch.Tensor,
    gate_up: torch.Tensor,
    grad_a: torch.Tensor,
    input_a: torch.Tensor,
    lora_b: torch.Tensor,
    gelu: bool,
    ranks: list[int],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The backward pass through h = act(gate) * up, with the low-rank products that need it.

    Args:
        grad: (T, hidden), the gradient of h.
        gate_up: (T, 2 hidden), as in the forward pass.
        grad_a: (T, spare), the gradient of h A' of the down layer, in its first columns.
        input_a: (T, spare), x A' of gate, and beside it that of up.
        lora_b: (2 hidden, spare), s B of gate, and below it and to the right that of up.
        gelu: as in the forward pass.
        ranks: of gate, up and down.

    Returns:
        [d, d lora_b] (T, 2 hidden + spare) for d, the gradient of `gate_up`; and in float32,
        without s: the gradients of B of gate (hidden, r), of B of up, and of A of down (r, hidden).
    """
    if grad.is_cuda:
        return _kernel_module().backward(grad, gate_up, grad_a, input_a, lora_b, gelu, ranks)
    gate, up = gate_up.float().chunk(2, 1)
    grad_activation, activation = grad.float() * up, _activation(gate, gelu)
    if gelu:
        grad_gate = torch.ops.aten.gelu_backward(grad_activation, gate, approximate="tanh")
    else:
        grad_gate = torch.ops.aten.silu_backward(grad_activation, gate)
    grad_gate_up = torch.cat([grad_gate, grad.float() * activation], 1).to(grad.dtype)
    hidden_size, gate_rank, up_end = grad.shape[1], ranks[0], ranks[0] + ranks[1]
    input_a = input_a.float()
    grad_gate_b = grad_gate_up[:, :hidden_size].T.float() @ input_a[:, :gate_rank]
    grad_up_b = grad_gate_up[:, hidden_size:].T.float() @ input_a[:, gate_rank:up_end]
    hidden = (activation * up).to(grad.dtype).float()
    grad_down_a = grad_a[:, : ranks[2]].T.float() @ hidden
    with_low_rank = torch.cat([grad_gate_up, grad_gate_up @ lora_b], 1)
    return with_low_rank, grad_gate_b, grad_up_b, grad_down_a


@_backward.register_fake
def _(
    grad: torch.Tensor,
    gate_up: torch.Tensor,
    grad_a: torch.Tensor,
    input_a: torch.Tensor,
    lora_b: torch.Tensor,
    gelu: bool,
    ranks: list[int],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    (rows, hidden_size), spare = grad.shape, lora_b.shape[1]
    new_float32 = partial(grad.new_empty, dtype=torch.float32)
    return (
        grad.new_empty(rows, 2 * hidden_size + spare),
        new_float32(hidden_size, ranks[0]),
        new_float32(hidden_size, ranks[1]),
        new_float32(ranks[2], hidden_size),
    )


def _activation(gate: torch.Tensor, gelu: bool) -> torch.Tensor:
    return F.gelu(gate, approximate="tanh") if gelu else F.silu(gate)


@cache
def _kernel_module() -> Any:
    from tarazu.chat.fast import fused_mlp_triton

    return fused_mlp_triton
