"""tanh in one instruction of an NVIDIA GPU, for scores that are capped (Gemma 2) and then multiplied in bfloat16.

`tanh.approx.f32` is exact to 2^-11, bfloat16 to 2^-9. tanh is counted for every pair of places, again in the backward pass, and
there it cost as much as the products. The idea is from PyTorch's attention-gym. The compiler is told what to write for the
operator; everywhere else it is torch's own tanh.
"""

from __future__ import annotations

from functools import cache, partial

import torch


@torch.library.custom_op("tarazu::fast_tanh", mutates_args=())
def _fast_tanh(x: torch.Tensor) -> torch.Tensor:
    return torch.tanh(x)


@_fast_tanh.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


@cache
def register_tanh_lowering() -> None:
    """Once, before something that uses it is compiled for a GPU."""
    from torch._inductor.lowering import make_pointwise, register_lowering
    from torch._inductor.virtualized import ops

    register_lowering(torch.ops.tarazu.fast_tanh)(
        make_pointwise(partial(ops.inline_asm_elementwise, asm="tanh.approx.f32 $0, $1;"))
    )


class FastTanh(torch.autograd.Function):
    """x -> tanh x, elementwise, also under the `vmap` with which flex attention reads a score's arithmetic."""

    @staticmethod
    def forward(x: torch.Tensor) -> torch.Tensor:
        return torch.ops.tarazu.fast_tanh(x)

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: torch.Tensor) -> None:
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> torch.Tensor:
        (out,) = ctx.saved_tensors
        return grad * (1 - out * out)

    @staticmethod
    def vmap(_info, _in_dims: tuple, x: torch.Tensor) -> tuple[torch.Tensor, int]:
        return FastTanh.apply(x), 0
