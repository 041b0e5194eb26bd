"""FlashAttention 4 for packed rows, where it is installed: kernels made for the GPU at hand, no mask at all.

Dao-AILab's flash-attn-4 (Shah et al. 2024, arXiv:2407.08608, for Hopper) takes the edges of the rows and skips everything
outside of them. It is a package of its own (`pip install tarazu[flash]`), for GPUs from Hopper on, and needs rows that fit
into the model's sliding window. The gradient of queries is added up in no fixed order: two runs may differ in the last place,
unless `torch.use_deterministic_algorithms` is on. Where it cannot be used, flex attention (`flex.py`) does the same.
"""

from __future__ import annotations

from importlib.util import find_spec

import torch
from transformers import PretrainedConfig

WIDEST_HEAD = 256
HALVES = (torch.bfloat16, torch.float16)
HOPPER = (9, 0)


def unavailable_reason(
    config: PretrainedConfig, dtype: torch.dtype, device: torch.device, longest: int, prefix: int
) -> str:
    """What stands in the way of these kernels, "" if nothing does.

    Args:
        config: of the model.
        dtype, device: of its weights.
        longest: places of the longest row that may come.
        prefix: positions that all rows share, which these kernels do not know.
    """
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    window = getattr(config, "sliding_window", None)
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < HOPPER:
        return "FlashAttention 4 needs an NVIDIA GPU from Hopper on"
    if find_spec("flash_attn") is None or find_spec("flash_attn.cute") is None:
        return "FlashAttention 4 is not installed (pip install tarazu[flash])"
    if dtype not in HALVES or head > WIDEST_HEAD or head % 8:
        return (
            f"FlashAttention 4 takes 16 bits and heads up to {WIDEST_HEAD}, not {dtype} and {head}"
        )
    if prefix:
        return "FlashAttention 4 knows no prefix"
    return (
        f"rows may be longer than the model's window of {window}"
        if window and longest > window
        else ""
    )


def is_cu_seqlens(mask: object) -> bool:
    """Whether what stands for a mask is `make_cu_seqlens`, as (1, 1, 1, E)."""
    return isinstance(mask, torch.Tensor) and mask.dtype == torch.int32


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    edges: torch.Tensor,
    scaling: float,
    softcap: float | None,
) -> torch.Tensor:
    """Causal attention within rows: (B, heads, T, size) -> (B, T, heads, size)."""
    half = query.dtype if query.dtype in HALVES else torch.bfloat16  # under autocast
    flat = [x.transpose(1, 2).flatten(0, 1).to(half).contiguous() for x in (query, key, value)]
    out, _ = torch.ops.tarazu.flash_forward(*flat, edges.flatten(), scaling, softcap or 0.0)
    return out.unflatten(0, (query.shape[0], query.shape[2]))


@torch.library.custom_op("tarazu::flash_forward", mutates_args=(), device_types="cuda")
def _forward(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    edges: torch.Tensor,
    scaling: float,
    softcap: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(places, heads, size) each -> the same of the output, and (heads, places) log-sums."""
    from flash_attn.cute.interface import _flash_attn_fwd

    return _flash_attn_fwd(
        query,
        key,
        value,
        **_rows(edges, query.shape[0]),
        softmax_scale=scaling,
        causal=True,
        softcap=softcap,
        return_lse=True,
    )[:2]


@_forward.register_fake
def _(query, key, value, edges, scaling, softcap):
    return torch.empty_like(query), query.new_empty(
        query.shape[1], query.shape[0], dtype=torch.float32
    )


@torch.library.custom_op("tarazu::flash_backward", mutates_args=(), device_types="cuda")
def _backward(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    out: torch.Tensor,
    slope: torch.Tensor,
    sums: torch.Tensor,
    edges: torch.Tensor,
    scaling: float,
    softcap: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    from flash_attn.cute.interface import _flash_attn_bwd

    return _flash_attn_bwd(
        query,
        key,
        value,
        out,
        slope,
        sums,
        scaling,
        True,
        softcap,
        **_rows(edges, query.shape[0]),
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )[:3]


@_backward.register_fake
def _(query, key, value, out, slope, sums, edges, scaling, softcap):
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _kept(ctx, inputs: tuple, output: tuple) -> None:
    query, key, value, edges, ctx.scaling, ctx.softcap = inputs
    ctx.save_for_backward(query, key, value, edges, *output)


def _slopes(ctx, slope: torch.Tensor, _sums: None) -> tuple:
    query, key, value, edges, out, sums = ctx.saved_tensors
    return (
        *torch.ops.tarazu.flash_backward(
            query, key, value, out, slope.contiguous(), sums, edges, ctx.scaling, ctx.softcap
        ),
        None,
        None,
        None,
    )


_forward.register_autograd(_slopes, setup_context=_kept)


def _rows(edges: torch.Tensor, places: int) -> dict:
    """How the kernels are told of rows; no row is longer than all places."""
    return {
        "cu_seqlens_q": edges,
        "cu_seqlens_k": edges,
        "max_seqlen_q": places,
        "max_seqlen_k": places,
    }
