"""FlashAttention 4 for packed rows: fast kernels for recent NVIDIA GPUs that need no mask.

Chosen for training passes when `unavailable_reason` is empty: a GPU from Hopper on, the package
installed (`pip install tarazu[flash]`), 16-bit weights, no prefix, and no row longer than the
model's sliding window. Else flex attention (`flex_attention.py`) computes the same.

The kernels (Dao-AILab's flash-attn-4; Shah et al. 2024, arXiv:2407.08608) take the boundaries of
the rows and skip all pairs of positions in different rows. They sum the gradient of the queries in
no fixed order: two runs may differ in the last bit, unless
`torch.use_deterministic_algorithms` is on.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from transformers import PretrainedConfig

MAX_HEAD_DIM = 256
HALF_DTYPES = (torch.bfloat16, torch.float16)
HOPPER = (9, 0)  # compute capability


def head_dim(config: PretrainedConfig) -> int:
    """Width of one attention head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def unavailable_reason(
    config: PretrainedConfig,
    dtype: torch.dtype,
    device: torch.device,
    max_row_length: int,
    prefix_length: int,
) -> str:
    """Why these kernels cannot run the training passes; "" if they can.

    Args:
        config: the model's configuration.
        dtype: of the model's weights.
        device: of the model's weights.
        max_row_length: positions of the longest row that may come.
        prefix_length: key-value positions before every row, which these kernels do not support.
    """
    size = head_dim(config)
    window = getattr(config, "sliding_window", None)
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < HOPPER:
        return "FlashAttention 4 needs an NVIDIA GPU from Hopper on"
    if find_spec("flash_attn") is None or find_spec("flash_attn.cute") is None:
        return "FlashAttention 4 is not installed (pip install tarazu[flash])"
    if dtype not in HALF_DTYPES or size > MAX_HEAD_DIM or size % 8:
        return (
            f"FlashAttention 4 needs 16-bit weights and head sizes up to {MAX_HEAD_DIM} that are "
            f"multiples of 8, not {dtype} and {size}"
        )
    if prefix_length:
        return "FlashAttention 4 does not support a prefix"
    if window and max_row_length > window:
        return f"rows may be longer than the model's sliding window of {window}"
    return ""


def is_cu_seqlens(mask: object) -> bool:
    """Whether a layer was given `ChatBatch.cu_seqlens`, as (1, 1, 1, E) int32, in place of a
    mask."""
    return isinstance(mask, torch.Tensor) and mask.dtype == torch.int32


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seqlens: torch.Tensor,
    scaling: float,
    softcap: float | None,
) -> torch.Tensor:
    """Causal attention within rows.

    Args:
        query: (B, heads, T, head_dim).
        key: (B, key-value heads, T, head_dim).
        value: as `key`.
        cu_seqlens: row boundaries, E numbers of any shape.
        scaling: factor of the scores.
        softcap: scores are softcap * tanh(score / softcap); None: uncapped.

    Returns:
        (B, T, heads, head_dim), in 16 bits.
    """
    # Under autocast the inputs may be float32.
    dtype = query.dtype if query.dtype in HALF_DTYPES else torch.bfloat16
    # All lines become one line of B * T positions: the boundaries count through.
    flat = [x.transpose(1, 2).flatten(0, 1).to(dtype).contiguous() for x in (query, key, value)]
    out, _ = torch.ops.tarazu.flash_forward(*flat, cu_seqlens.flatten(), scaling, softcap or 0.0)
    return out.unflatten(0, (query.shape[0], query.shape[2]))


# The kernels are custom operators, so that torch.compile takes them as they are.


@torch.library.custom_op("tarazu::flash_forward", mutates_args=(), device_types="cuda")
def _forward(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seqlens: torch.Tensor,
    scaling: float,
    softcap: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(positions, heads, head_dim) each -> the output of that shape, (heads, positions)
    log-sums."""
    from flash_attn.cute.interface import _flash_attn_fwd

    return _flash_attn_fwd(
        query,
        key,
        value,
        **_row_arguments(cu_seqlens, query.shape[0]),
        softmax_scale=scaling,
        causal=True,
        softcap=softcap,
        return_lse=True,
    )[:2]


@_forward.register_fake
def _(query, key, value, cu_seqlens, scaling, softcap):
    num_positions, heads, _ = query.shape
    return torch.empty_like(query), query.new_empty(heads, num_positions, dtype=torch.float32)


@torch.library.custom_op("tarazu::flash_backward", mutates_args=(), device_types="cuda")
def _backward(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    out: torch.Tensor,
    grad_out: torch.Tensor,
    log_sums: torch.Tensor,
    cu_seqlens: torch.Tensor,
    scaling: float,
    softcap: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients of query, key and value."""
    from flash_attn.cute.interface import _flash_attn_bwd

    return _flash_attn_bwd(
        query,
        key,
        value,
        out,
        grad_out,
        log_sums,
        scaling,
        True,  # causal
        softcap,
        **_row_arguments(cu_seqlens, query.shape[0]),
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )[:3]


@_backward.register_fake
def _(query, key, value, out, grad_out, log_sums, cu_seqlens, scaling, softcap):
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _save_for_backward(ctx: Any, inputs: tuple, output: tuple) -> None:
    query, key, value, cu_seqlens, ctx.scaling, ctx.softcap = inputs
    ctx.save_for_backward(query, key, value, cu_seqlens, *output)


def _gradients(ctx: Any, grad_out: torch.Tensor, _grad_log_sums: None) -> tuple:
    query, key, value, cu_seqlens, out, log_sums = ctx.saved_tensors
    grads = torch.ops.tarazu.flash_backward(
        query,
        key,
        value,
        out,
        grad_out.contiguous(),
        log_sums,
        cu_seqlens,
        ctx.scaling,
        ctx.softcap,
    )
    return *grads, None, None, None  # none for cu_seqlens, scaling and softcap


_forward.register_autograd(_gradients, setup_context=_save_for_backward)


def _row_arguments(cu_seqlens: torch.Tensor, num_positions: int) -> dict[str, Any]:
    """The row boundaries as the kernels name them. No row is longer than all positions."""
    return {
        "cu_seqlens_q": cu_seqlens,
        "cu_seqlens_k": cu_seqlens,
        "max_seqlen_q": num_positions,
        "max_seqlen_k": num_positions,
    }
