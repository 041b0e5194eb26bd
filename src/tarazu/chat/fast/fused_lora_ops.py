"""The products of `wide.py`, forward and backward, and what the compiler is told of them: a part is written where it belongs."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch


class FusedLoRAMatmul(torch.autograd.Function):
    """(x (..., in), matrix, scales, A1, B1, A2, B2, ...) -> (..., out) of each layer; see `wide.py`."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        matrix: torch.Tensor,
        scales: torch.Tensor,
        *factors: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        sizes, width = [up.shape[0] for up in factors[1::2]], x.shape[-1]
        total = sum(sizes)
        wider = extended([x.reshape(-1, width)], matrix[total:, :width])
        ctx.save_for_backward(wider, matrix, scales, *factors)
        ctx.sizes = sizes
        out = wider @ matrix[:total].T
        return tuple(part.view(*x.shape[:-1], -1) for part in out.split(sizes, 1))

    @staticmethod
    def backward(ctx: Any, *slopes: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        inputs, matrix, scales, *factors = ctx.saved_tensors
        total, width = sum(ctx.sizes), factors[0].shape[1]
        wider = extended(
            [slope.reshape(-1, slope.shape[-1]) for slope in slopes], matrix[:total, width:].T
        )
        into = wider @ matrix[:, :width]
        downs = wider[:, total:].T @ inputs[:, :width]
        ups = wider[:, :total].T @ inputs[:, width:]
        found, row, column = [], 0, 0
        for size, scale, down, up in zip(
            ctx.sizes, scales, factors[::2], factors[1::2], strict=True
        ):
            end = column + down.shape[0]
            found += [
                downs[column:end].to(down.dtype),
                ups[row : row + size, column:end].to(up.dtype) * scale,
            ]
            row, column = row + size, end
        return into.view(*slopes[0].shape[:-1], width), None, None, *found


def extended(parts: list[torch.Tensor], thin: torch.Tensor) -> torch.Tensor:
    """[x, x thin'] for x (T, n) in parts side by side, and thin (spare, n).

    The thin product writes into the place that was left for it, so that x is written once, where it belongs.
    """
    made = torch.ops.tarazu.with_room(parts, thin.shape[0])
    torch.ops.tarazu.thin_product(made, thin)
    return made


@torch.library.custom_op(
    "tarazu::with_room", mutates_args=(), schema="(Tensor[] parts, int room) -> Tensor"
)
def _with_room(parts: list[torch.Tensor], room: int) -> torch.Tensor:
    """(T, n1), (T, n2), ... side by side, and `room` more columns."""
    return torch.cat([*parts, parts[0].new_zeros(parts[0].shape[0], room)], 1)


@_with_room.register_fake
def _(parts: list[torch.Tensor], room: int) -> torch.Tensor:
    return parts[0].new_empty(parts[0].shape[0], sum(part.shape[1] for part in parts) + room)


@torch.library.custom_op("tarazu::thin_product", mutates_args=("made",))
def _thin_product(made: torch.Tensor, thin: torch.Tensor) -> None:
    """Writes the product of the first columns of `made` (T, n + spare) and of thin' (n, spare) into its last columns."""
    width = thin.shape[1]
    torch.mm(made[:, :width], thin.T, out=made[:, width:])


@_thin_product.register_fake
def _(made: torch.Tensor, thin: torch.Tensor) -> None:
    return None


@cache
def register_lowerings() -> None:
    """Whoever makes a part writes it into its place. Left alone, the compiler makes all parts in one kernel on a GPU, which
    reads what they share (the gradients of gate and up: three matrices) once for each."""
    from torch._inductor import ir
    from torch._inductor.lowering import lowerings, register_lowering

    @register_lowering(torch.ops.tarazu.with_room, type_promotion_kind=None)
    def _(parts: list[Any], room: int) -> Any:
        first = parts[0]
        zeros = lowerings[torch.ops.aten.full.default](
            [first.get_size()[0], room], 0, dtype=first.get_dtype(), device=first.get_device()
        )
        made = ir.ConcatKernel.create([*parts, zeros], 1)
        return made if isinstance(made, ir.TensorBox) else ir.TensorBox(made)
