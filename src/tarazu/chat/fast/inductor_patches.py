"""Two changes to torch.compile's Inductor: tanh in one instruction, and norms that read their rows
once.

tanh: Gemma 2 caps the score of every pair of positions, and again in the backward pass, where
exact tanh cost as much as the matrix products. `tanh.approx.f32` is one instruction of an NVIDIA
GPU and exact to 2^-11; the bfloat16 product that follows is exact to 2^-9. The idea is from
PyTorch's attention-gym.

Norms: Inductor keeps rows of up to 1,024 numbers in registers and reads longer ones twice. Models
have rows of 2,048 to 4,096 numbers, which fit as well: norms then take a seventh less time
(Llama-3.2-3B's shape on an H100).
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import torch

MAX_ROW = 4096  # numbers of a row that a reduction keeps in registers


@torch.library.custom_op("tarazu::fast_tanh", mutates_args=())
def _fast_tanh(x: torch.Tensor) -> torch.Tensor:
    return torch.tanh(x)


@_fast_tanh.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


class FastTanh(torch.autograd.Function):
    """Elementwise tanh; approximate in code compiled for a GPU, torch's own everywhere else.

    It has a `vmap` rule, because flex attention maps a `score_mod` over all pairs of positions.
    """

    @staticmethod
    def forward(x: torch.Tensor) -> torch.Tensor:
        """tanh of a tensor of any shape."""
        return torch.ops.tarazu.fast_tanh(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: torch.Tensor) -> None:
        """Keep the output, in its shape, for the backward pass."""
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        """The derivative of tanh is 1 - tanh^2; same shape as `grad`."""
        (out,) = ctx.saved_tensors
        return grad * (1 - out * out)

    @staticmethod
    def vmap(_info: Any, _in_dims: tuple, x: torch.Tensor) -> tuple[torch.Tensor, int]:
        """Elementwise, so a batch is just a larger shape."""
        return FastTanh.apply(x), 0


@cache
def register_tanh_lowering() -> None:
    """Let Inductor write `FastTanh` as one instruction. Call it before such code is compiled."""
    from torch._inductor.lowering import make_pointwise, register_lowering
    from torch._inductor.virtualized import ops

    register_lowering(torch.ops.tarazu.fast_tanh)(
        make_pointwise(partial(ops.inline_asm_elementwise, asm="tanh.approx.f32 $0, $1;"))
    )


@cache
def extend_persistent_reductions() -> None:
    """Let Inductor keep rows of up to `MAX_ROW` numbers. Call it before norms are compiled."""
    from torch._inductor.choices import InductorChoices
    from torch._inductor.runtime.hints import ReductionHint
    from torch._inductor.virtualized import V

    original = InductorChoices.should_use_persistent_reduction

    def should_use_persistent_reduction(features: Any, cooperative_reduction: bool) -> bool:
        # INNER: the numbers that are summed lie side by side in memory.
        if not cooperative_reduction and features.get_reduction_hint() == ReductionHint.INNER:
            sizes = V.graph.sizevars
            if sizes.statically_known_leq(features.reduction_numel, MAX_ROW):
                return True
        return original(features, cooperative_reduction)

    InductorChoices.should_use_persistent_reduction = staticmethod(should_use_persistent_reduction)
