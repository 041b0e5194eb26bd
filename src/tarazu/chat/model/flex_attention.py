"""Attention that skips the blocks of other rows: packed rows on a GPU cost what they would cost alone.

FlexAttention (Dong et al. 2024, arXiv:2412.05496) behind transformers' attention interface, under the name "tarazu_flex".
With a plain mask (generation, uneven sizes) the same name is PyTorch's SDPA, or plain arithmetic where scores are capped.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from tarazu.chat.model import flash_attention
from tarazu.chat.model.batching import BLOCK, PAD
from tarazu.chat.model.tanh_approx import FastTanh, register_tanh_lowering

NAME = "tarazu_flex"
PREFIX_PADDING = -2  # the segment of the places that fill a prefix up to whole blocks
# Heads over 128 numbers wide: tiles of 64 need no larger blocks, and 4 warps would spill registers in the backward pass.
WIDE_HEAD = {
    "fwd_BLOCK_M": 64,
    "fwd_BLOCK_N": 32,
    "fwd_num_stages": 2,
    "fwd_num_warps": 4,
    "bwd_num_warps": 8,
}


def block_size(head: int) -> int:
    """Places in a block, for heads of so many numbers: no larger than the kernel's tiles, or it works on hidden ones."""
    return BLOCK if head <= 128 else BLOCK // 2


def padded_prefix_length(prefix: int, block: int = BLOCK) -> int:
    """How many key places a prefix takes: whole blocks, so that rows begin at a block."""
    return -(-prefix // block) * block


def block_mask(
    segments: torch.Tensor,
    positions: torch.Tensor,
    prefix: int = 0,
    window: int | None = None,
    block: int = BLOCK,
) -> BlockMask:
    """The rule of `attention.visible` for whole lines, as blocks that are needed whole, in part or not at all.

    Rows are contiguous in a line, so the blocks follow from the first and last row in each; nothing of size (T, T) is made.

    Args:
        segments, positions: (B, T), as in `ChatBatch`; T is a multiple of `BLOCK`.
        prefix: shared positions before every row; keys are then `padded_prefix_length(prefix)` places longer than queries.
        window: places further back than this are hidden; None: no limit.
        block: places in a block.
    """
    lines, width = segments.shape
    place = torch.arange(width, device=segments.device)
    own = torch.where(
        segments == PAD, width + place, segments
    ).int()  # each padded place is a row of its own
    ahead = padded_prefix_length(prefix, block)
    keys = F.pad(own, (ahead, 0), value=PREFIX_PADDING)
    places = positions.int()
    # a tensor, for a number would be compiled in, and each kind of layer would compile its own code
    limit = torch.full(
        (), width + ahead if window is None else window, dtype=torch.int32, device=segments.device
    )

    def rule(b, _head, q, k):
        back = q + ahead - k  # within a row, places and positions move together
        seen = (own[b, q] == keys[b, k]) & (back >= 0) & (back < limit)
        return seen | ((k < prefix) & (places[b, q] - k < limit)) if prefix else seen

    whole, part = _blocks(own.view(lines, -1, block), ahead // block, window, width)
    sizes = (width, width + ahead)
    made = BlockMask.from_kv_blocks(
        *_listed(part),
        *_listed(whole),
        BLOCK_SIZE=block,
        mask_mod=rule,
        seq_lengths=sizes,
        compute_q_blocks=False,
    )
    # what `compute_q_blocks` does, without going through the lists, and so that it can be recorded
    made.q_num_blocks, made.q_indices = _listed(part.transpose(1, 2))
    made.full_q_num_blocks, made.full_q_indices = _listed(whole.transpose(1, 2))
    return made


def _blocks(
    own: torch.Tensor, before: int, window: int | None, width: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, query blocks, key blocks) bool twice: seen whole, and seen in part; `before` prefix blocks come first."""
    low, high, block = own.amin(-1), own.amax(-1), own.shape[-1]
    number = torch.arange(low.shape[1], device=own.device)
    apart = number[:, None] - number
    meet = (low[:, :, None] <= high[:, None, :]) & (low[:, None, :] <= high[:, :, None])
    one_row = (
        (low == high)[:, :, None]
        & (low[:, :, None] == low[:, None, :])
        & (high == low)[:, None, :]
        & (high < width)[:, :, None]
    )
    needed, whole = meet & (apart >= 0), one_row & (apart > 0)
    if window is not None:
        needed, whole = (
            needed & ((apart - 1) * block + 1 < window),
            whole & ((apart + 1) * block - 1 < window),
        )
    return F.pad(whole, (before, 0)), F.pad(needed & ~whole, (before, 0), value=True)


def _listed(dense: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, 1, Q) counts and (B, 1, Q, K) indices, needed ones first, of a (B, Q, K) bool grid."""
    dense = dense[:, None].int()
    return dense.sum(-1, dtype=torch.int32), torch.argsort(
        dense, dim=-1, descending=True, stable=True
    ).int().contiguous()


def uses_flex_attention(model: PreTrainedModel) -> bool:
    """Whether the model's attention skips blocks where it can."""
    return model.config._attn_implementation == NAME


def is_block_aligned(queries: int, device: torch.device) -> bool:
    """Whether blocks pay: on a GPU, for whole blocks of places, more than a few."""
    return device.type == "cuda" and queries % BLOCK == 0 and queries >= 2 * BLOCK


def attend(
    module,
    query,
    key,
    value,
    attention_mask,
    scaling=None,
    dropout=0.0,
    softcap=None,
    prefix=None,
    **_,
):
    """transformers' attention function: (B, heads, Q, size) queries -> (B, Q, heads, size).

    `prefix`, with blocks only: keys and values (key-value heads, P, size) that stand before every line.
    """
    if flash_attention.is_cu_seqlens(attention_mask):
        return flash_attention.attend(query, key, value, attention_mask, scaling, softcap), None
    if attention_mask is None:  # transformers' word for "plainly causal"
        attention_mask = torch.ones(
            query.shape[2], key.shape[2], dtype=torch.bool, device=query.device
        ).tril(key.shape[2] - query.shape[2])
    if isinstance(attention_mask, BlockMask):
        if prefix is not None:
            key, value = (
                torch.cat([_filled(p, own), own], 2)
                for p, own in zip(prefix, (key, value), strict=True)
            )
        options = WIDE_HEAD if query.shape[-1] > 128 else None
        attention = flex_attention if torch.compiler.is_compiling() else _compiled()
        half = query.is_cuda and query.dtype != torch.float32
        out = attention(
            query,
            key,
            value,
            _capped(softcap, half),
            attention_mask,
            scale=scaling,
            enable_gqa=query.shape[1] != key.shape[1],
            kernel_options=options,
        )
    elif softcap is None:
        out = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attention_mask,
            dropout if module.training else 0.0,
            scale=scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )
    else:
        repeats = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
        scores = (
            torch.tanh(
                query @ key.transpose(-1, -2) * (scaling or query.shape[-1] ** -0.5) / softcap
            )
            * softcap
        )
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
        out = scores.float().softmax(-1).to(query.dtype) @ value
    return out.transpose(1, 2).contiguous(), None


def _filled(prefix: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """A prefix (heads, P, size) as (B, heads, whole blocks, size), in the type of `rows`."""
    wide = F.pad(
        prefix,
        (
            0,
            0,
            0,
            padded_prefix_length(prefix.shape[1], block_size(rows.shape[-1])) - prefix.shape[1],
        ),
    )
    return wide.to(rows.dtype).expand(rows.shape[0], -1, -1, -1)


def raise_recompile_limit() -> None:
    """Lets the compiler make one graph for each packed width; by default it gives up after a few."""
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)


@lru_cache
def _compiled():
    raise_recompile_limit()
    register_tanh_lowering()
    return torch.compile(flex_attention, dynamic=False)


@lru_cache
def _capped(softcap: float | None, half: bool):
    """Gemma 2's softcapping; one function object per cap, or every call would compile anew. `half`: scores in 16 bits, on a GPU."""
    if softcap is None:
        return None

    def exact(score, _b, _h, _q, _k):
        return softcap * (
            2 * torch.sigmoid(score * (2 / softcap)) - 1
        )  # softcap * tanh(score / softcap), in fewer instructions

    def fast(score, _b, _h, _q, _k):
        return softcap * FastTanh.apply(score / softcap)

    return fast if half else exact


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(
    NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"]
)  # for who calls the model without our masks
