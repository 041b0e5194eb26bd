"""A gated MLP whose three layers carry LoRA, as one piece: down(act(gate x) * up x) with the adapters inside the products.

`wide.py` makes two large products of it. What lies between them is done here: forward, act(gate) * up is made beside its product
with the down layer's A; backward, one reading of the matrices gives the slopes of gate and up and all five thin products that
need them (three above rank 32), and act(gate) * up is made again, so it is not kept: a seventh less memory for Gemma2-2B. On a GPU that is
`gated_kernel.py`; what is here computes the same, and tests compare both with the model's own code.
"""

from __future__ import annotations

from functools import cache, partial
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from tarazu.chat.fast.fused_lora_ops import extended

MAX_RANK = 64  # the kernel holds so many columns at a time
GENERATIONS = (
    9,
    10,
)  # of data centres' GPUs, Hopper and Blackwell: the kernel's tiles take 96 to 164 KiB of a processor's own memory, which others have not


def is_supported(weight: torch.Tensor) -> bool:
    """Whether there is a kernel for such weights: in 16 bits, on an NVIDIA GPU with room for it (tried on an H100)."""
    if not weight.is_cuda or torch.version.cuda is None or find_spec("triton") is None:
        return False
    return (
        weight.dtype in (torch.bfloat16, torch.float16)
        and torch.cuda.get_device_capability(weight.device)[0] in GENERATIONS
    )


def fuse_mlp(mlp: nn.Module) -> bool:
    """Makes `mlp`, whose layers `wide.py` has joined, one piece if it is one of those that are known; tells whether."""
    groups = [
        getattr(getattr(mlp, name, None), "group", None)
        for name in ("gate_proj", "up_proj", "down_proj")
    ]
    if (
        None in groups
        or groups[0] is not groups[1]
        or any(group.squares is not None for group in groups)
    ):
        return False
    layers = [*groups[0].modules, *groups[2].modules]
    known = all(
        layer.base_layer.bias is None and layer.r[layer.active_adapters[0]] <= MAX_RANK
        for layer in layers
    )
    kind = _activation(getattr(mlp, "act_fn", None))
    if not known or kind is None or not is_supported(groups[0].matrix) or not _is_plain(mlp):
        return False
    mlp.gelu, mlp.__class__ = kind == "gelu", _gated(type(mlp))
    return True


def has_fused_mlp(model: nn.Module) -> bool:
    """Whether `gate` was here and found something."""
    return any(isinstance(module, _Gated) for module in model.modules())


def _activation(function: Any) -> str | None:
    """Which of those that the kernel knows it is, by what it does."""
    if not callable(function) or (isinstance(function, nn.Module) and function.state_dict()):
        return None  # one that learns, or lies on the GPU
    probe = torch.linspace(-6, 6, 98)
    known, found = (
        {"silu": F.silu(probe), "gelu": F.gelu(probe, approximate="tanh")},
        function(probe),
    )
    return next(
        (
            name
            for name, wanted in known.items()
            if found.shape == probe.shape and torch.allclose(found, wanted, atol=1e-6)
        ),
        None,
    )


@torch.no_grad()
def _is_plain(mlp: nn.Module) -> bool:
    """Whether it computes what the first line of this file says: no factor, norm or dropout besides."""
    weight = mlp.gate_proj.base_layer.weight
    x = torch.linspace(-1, 1, weight.shape[1], device=weight.device, dtype=weight.dtype)[None, None]
    return torch.equal(mlp(x), mlp.down_proj(mlp.act_fn(mlp.gate_proj(x)) * mlp.up_proj(x)))


@cache
def _gated(kind: type) -> type:
    """The class of such MLPs, one for each of the model's, so that layers stay alike for the compiler."""
    return type(f"Gated{kind.__name__}", (_Gated, kind), {})


class _Gated:
    """In a compiled layer that learns; everywhere else, and where results must not differ in the last place, the model's own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        layers = (self.gate_proj, self.up_proj, self.down_proj)
        if (
            any(layer.falls_back(x) for layer in layers)
            or torch.are_deterministic_algorithms_enabled()
        ):
            return super().forward(x)
        first, last = self.gate_proj.group, self.down_proj.group
        return FusedGatedMLPFunction.apply(
            x,
            first.matrix,
            last.matrix,
            first.scales,
            last.scales,
            self.gelu,
            *first.factors(),
            *last.factors(),
        )


class FusedGatedMLPFunction(torch.autograd.Function):
    """(x (..., in), matrices and scales of gate with up and of down as in `wide.py`, gelu, their A and B) -> (..., in)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        matrix: torch.Tensor,
        last: torch.Tensor,
        scales: torch.Tensor,
        last_scales: torch.Tensor,
        gelu: bool,
        *factors: torch.Tensor,
    ) -> torch.Tensor:
        width, hidden, out = x.shape[-1], factors[4].shape[1], factors[5].shape[0]
        inputs = extended([x.reshape(-1, width)], matrix[2 * hidden :, :width])
        both = inputs @ matrix[: 2 * hidden].T
        made, thin = torch.ops.tarazu.gated(both, last[out:, :hidden], gelu, factors[4].shape[0])
        ctx.save_for_backward(inputs, both, thin, matrix, last, scales, last_scales, *factors)
        ctx.gelu = gelu
        return (made @ last[:out].T).view(*x.shape[:-1], out)

    @staticmethod
    def backward(ctx: Any, slope: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        inputs, both, thin, matrix, last, scales, last_scales, *factors = ctx.saved_tensors
        ranks, width, (hidden, out) = (
            [down.shape[0] for down in factors[::2]],
            factors[0].shape[1],
            (factors[4].shape[1], slope.shape[-1]),
        )
        above = extended([slope.reshape(-1, out)], last[:out, hidden:].T)
        into = above @ last[:, :hidden]
        slopes, gates, ups, downs = torch.ops.tarazu.gated_slopes(
            into,
            both,
            above[:, out:],
            inputs[:, width:],
            matrix[: 2 * hidden, width:],
            ctx.gelu,
            ranks,
        )
        first = slopes[:, 2 * hidden :].T @ inputs[:, :width]
        last_up = above[:, :out].T @ thin
        found = [
            first[: ranks[0]], gates * scales[0], first[ranks[0] : ranks[0] + ranks[1]], ups * scales[1],
            downs, last_up[:, : ranks[2]] * last_scales[0],
        ]  # fmt: skip
        return (
            (slopes @ matrix[:, :width]).view(*slope.shape[:-1], width),
            *[None] * 5,
            *(one.to(factor.dtype) for one, factor in zip(found, factors, strict=True)),
        )


@torch.library.custom_op("tarazu::gated", mutates_args=())
def _forward(
    both: torch.Tensor, down: torch.Tensor, gelu: bool, rank: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """[h, h A'] (T, width + spare) and h A' alone, for h = act(gate) * up.

    Args:
        both: (T, 2 width), gate beside up.
        down: (spare, width), A and below it zeros.
        gelu: the activation is GELU by tanh, else SiLU.
        rank: rows of A.
    """
    if both.is_cuda:
        return _kernel().forward(both, down, gelu, rank)
    gate, up = both.float().chunk(2, 1)
    hidden = (_activated(gate, gelu) * up).to(both.dtype)  # rounded once
    thin = hidden @ down.T
    return torch.cat([hidden, thin], 1), thin


@_forward.register_fake
def _(
    both: torch.Tensor, down: torch.Tensor, gelu: bool, rank: int
) -> tuple[torch.Tensor, torch.Tensor]:
    spare, width = down.shape
    return both.new_empty(both.shape[0], width + spare), both.new_empty(both.shape[0], spare)


@torch.library.custom_op("tarazu::gated_slopes", mutates_args=())
def _backward(
    slope: torch.Tensor,
    both: torch.Tensor,
    thin_slope: torch.Tensor,
    thin_input: torch.Tensor,
    ups: torch.Tensor,
    gelu: bool,
    ranks: list[int],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The way back through act(gate) * up = h.

    Args:
        slope: (T, width), of h.
        both: as above.
        thin_slope: (T, spare), what reaches A h' of the down layer, in its first columns.
        thin_input: (T, spare), x A' of gate, and beside it that of up.
        ups: (2 width, spare), s B of gate, and below it and to the right that of up.
        gelu: as above.
        ranks: of gate, up and down.

    Returns:
        [d, d ups] (T, 2 width + spare) for the slope d of `both`; and in float32 the gradients of B of gate (width, r) and of up,
        without s, and of A of down (r, width).
    """
    if both.is_cuda:
        return _kernel().backward(slope, both, thin_slope, thin_input, ups, gelu, ranks)
    gate, up = both.float().chunk(2, 1)
    above, value = slope.float() * up, _activated(gate, gelu)
    steep = (
        torch.ops.aten.gelu_backward(above, gate, approximate="tanh")
        if gelu
        else torch.ops.aten.silu_backward(above, gate)
    )
    into = torch.cat([steep, slope.float() * value], 1).to(slope.dtype)
    (width, cut, end), thin = (slope.shape[1], ranks[0], ranks[0] + ranks[1]), thin_input.float()
    gates, others = (
        into[:, :width].T.float() @ thin[:, :cut],
        into[:, width:].T.float() @ thin[:, cut:end],
    )
    return (
        torch.cat([into, into @ ups], 1),
        gates,
        others,
        thin_slope[:, : ranks[2]].T.float() @ (value * up).to(slope.dtype).float(),
    )


@_backward.register_fake
def _(
    slope: torch.Tensor,
    both: torch.Tensor,
    thin_slope: torch.Tensor,
    thin_input: torch.Tensor,
    ups: torch.Tensor,
    gelu: bool,
    ranks: list[int],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    (places, width), spare = slope.shape, ups.shape[1]
    sums = partial(slope.new_empty, dtype=torch.float32)
    return (
        slope.new_empty(places, 2 * width + spare),
        sums(width, ranks[0]),
        sums(width, ranks[1]),
        sums(ranks[2], width),
    )


def _activated(gate: torch.Tensor, gelu: bool) -> torch.Tensor:
    return F.gelu(gate, approximate="tanh") if gelu else F.silu(gate)


@cache
def _kernel() -> Any:
    from tarazu.chat.fast import fused_mlp_triton

    return fused_mlp_triton
