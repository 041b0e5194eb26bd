"""The matrix products of `fused_lora.py`, forward and backward, and how Inductor writes them.

The operators keep the compiler from copying: a kernel writes each part of a matrix where it
belongs.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch


class FusedLoRAMatmul(torch.autograd.Function):
    """(x (..., in), matrix, scales, A1, B1, A2, B2, ...) -> (..., out) of each layer.

    `matrix` is [W, s B ; A, 0] as in `fused_lora.py`; `scales` are the adapters' s. The factors are
    arguments because they get the gradients; the products read them from `matrix`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        matrix: torch.Tensor,
        scales: torch.Tensor,
        *factors: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        """(..., in) -> (..., out) of each layer."""
        out_sizes, width = [lora_b.shape[0] for lora_b in factors[1::2]], x.shape[-1]
        total = sum(out_sizes)
        # [x, x A'] [W, s B]' = x W' + s (x A') B'.
        inputs = append_low_rank([x.reshape(-1, width)], matrix[total:, :width])
        ctx.save_for_backward(inputs, matrix, scales, *factors)
        ctx.out_sizes = out_sizes
        out = inputs @ matrix[:total].T
        return tuple(part.view(*x.shape[:-1], -1) for part in out.split(out_sizes, 1))

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients (..., in) of x, and of each A (r, in) and B (out, r)."""
        inputs, matrix, scales, *factors = ctx.saved_tensors
        total, width = sum(ctx.out_sizes), factors[0].shape[1]
        # [g, s g B] [W ; A] is the gradient of x.
        flat_grads = [grad.reshape(-1, grad.shape[-1]) for grad in grads]
        outputs = append_low_rank(flat_grads, matrix[:total, width:].T)
        grad_x = outputs @ matrix[:, :width]
        # Products of all layers with all factors; the blocks on the diagonal are the gradients.
        grad_a = outputs[:, total:].T @ inputs[:, :width]
        grad_b = outputs[:, :total].T @ inputs[:, width:]
        grad_factors, row, column = [], 0, 0
        layers = zip(ctx.out_sizes, scales, factors[::2], factors[1::2], strict=True)
        for size, scale, lora_a, lora_b in layers:
            end = column + lora_a.shape[0]
            grad_factors.append(grad_a[column:end].to(lora_a.dtype))
            grad_factors.append(grad_b[row : row + size, column:end].to(lora_b.dtype) * scale)
            row, column = row + size, end
        return grad_x.view(*grads[0].shape[:-1], width), None, None, *grad_factors


def append_low_rank(parts: list[torch.Tensor], factor: torch.Tensor) -> torch.Tensor:
    """[x, x F'], for x in parts side by side.

    The low-rank product writes into columns that are left for it, so x is written once, in its
    place.

    Args:
        parts: (T, n1), (T, n2), ...: x.
        factor: (spare, n1 + n2 + ...), F.

    Returns:
        (T, n1 + n2 + ... + spare).
    """
    out = torch.ops.tarazu.concat_with_space(parts, factor.shape[0])
    torch.ops.tarazu.low_rank_product(out, factor)
    return out


@torch.library.custom_op(
    "tarazu::concat_with_space", mutates_args=(), schema="(Tensor[] parts, int space) -> Tensor"
)
def _concat_with_space(parts: list[torch.Tensor], space: int) -> torch.Tensor:
    """(T, n1), (T, n2), ... side by side, then `space` columns of zeros."""
    return torch.cat([*parts, parts[0].new_zeros(parts[0].shape[0], space)], 1)


@_concat_with_space.register_fake
def _(parts: list[torch.Tensor], space: int) -> torch.Tensor:
    return parts[0].new_empty(parts[0].shape[0], sum(part.shape[1] for part in parts) + space)


@torch.library.custom_op("tarazu::low_rank_product", mutates_args=("out",))
def _low_rank_product(out: torch.Tensor, factor: torch.Tensor) -> None:
    """Write x F' into the last columns of `out` (T, n + spare), whose first n are x; F (spare,
    n)."""
    width = factor.shape[1]
    torch.mm(out[:, :width], factor.T, out=out[:, width:])


@_low_rank_product.register_fake
def _(out: torch.Tensor, factor: torch.Tensor) -> None:
    return None


@cache
def register_lowerings() -> None:
    """Let Inductor write each part of `concat_with_space` by the kernel that computes it.

    Left alone, Inductor computes all parts in one kernel on a GPU, which reads what they share (for
    the gradients of gate and up: three matrices) once for each part.
    """
    from torch._inductor import ir
    from torch._inductor.lowering import lowerings, register_lowering

    @register_lowering(torch.ops.tarazu.concat_with_space, type_promotion_kind=None)
    def _(parts: list[Any], space: int) -> Any:
        first = parts[0]
        zeros = lowerings[torch.ops.aten.full.default](
            [first.get_size()[0], space], 0, dtype=first.get_dtype(), device=first.get_device()
        )
        out = ir.ConcatKernel.create([*parts, zeros], 1)
        return out if isinstance(out, ir.TensorBox) else ir.TensorBox(out)
