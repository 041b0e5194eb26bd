"""Attention that skips blocks of other rows: a packed line on a GPU costs what its rows cost alone.

FlexAttention (Dong et al. 2024, arXiv:2412.05496) behind transformers' attention interface, under
the name "tarazu_flex". A model with this attention is loaded by default on a GPU
(`loading.pick_attention`). Each forward pass then takes one of three ways, by the mask that it is
given:

    cu_seqlens   FlashAttention 4: training passes that `flash_attention.unavailable_reason` allows
    BlockMask    flex attention: lines of two or more whole blocks on a GPU (`is_block_aligned`)
    dense mask   SDPA (eager arithmetic where scores are capped): generation, other widths, a CPU
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from tarazu.chat.fast.inductor_patches import FastTanh, register_tanh_lowering
from tarazu.chat.model import flash_attention
from tarazu.chat.model.batching import BLOCK, PAD

NAME = "tarazu_flex"
PREFIX_PADDING = -2  # segment of the keys that fill a prefix up to whole blocks
# Kernel options for heads of more than 128 numbers. Tiles of 64 need no larger blocks, and with 4
# warps the backward pass would spill registers.
WIDE_HEAD = {
    "fwd_BLOCK_M": 64,
    "fwd_BLOCK_N": 32,
    "fwd_num_stages": 2,
    "fwd_num_warps": 4,
    "bwd_num_warps": 8,
}


def uses_flex_attention(model: PreTrainedModel) -> bool:
    """Whether the model's attention is the one of this file."""
    return model.config._attn_implementation == NAME


def is_block_aligned(queries: int, device: torch.device) -> bool:
    """Whether block masks pay for lines of this many queries: on a GPU, for two or more whole
    blocks."""
    return device.type == "cuda" and queries % BLOCK == 0 and queries >= 2 * BLOCK


def block_size(head_dim: int) -> int:
    """Positions in a block. A block larger than the kernel's tiles would compute hidden tiles."""
    return BLOCK if head_dim <= 128 else BLOCK // 2


def padded_prefix_length(prefix_length: int, block: int = BLOCK) -> int:
    """Key positions that a prefix takes: whole blocks, so that rows begin at a block."""
    return -(-prefix_length // block) * block


def block_mask(
    segments: torch.Tensor,
    positions: torch.Tensor,
    prefix_length: int = 0,
    window: int | None = None,
    block: int = BLOCK,
) -> BlockMask:
    """The rule of `attention_mask.visibility_mask` for whole lines, as blocks.

    A block is visible as a whole, in part, or not at all. Rows are contiguous in a line, so this
    follows from the first and the last row in each block: nothing of size (T, T) is made.

    Args:
        segments: (B, T), as in `ChatBatch`; T is a multiple of `block`.
        positions: (B, T), as in `ChatBatch`.
        prefix_length: shared positions before every row. Keys are then longer than queries by
            `padded_prefix_length(prefix_length, block)`.
        window: keys this many positions back or more are hidden; None: no limit.
        block: positions in a block.
    """
    lines, width = segments.shape
    index = torch.arange(width, device=segments.device)
    # Each padded position is a row of its own, so that it sees itself.
    q_rows = torch.where(segments == PAD, width + index, segments).int()
    padded_prefix = padded_prefix_length(prefix_length, block)
    k_rows = F.pad(q_rows, (padded_prefix, 0), value=PREFIX_PADDING)
    row_positions = positions.int()
    # The window is a tensor: as a number it would be compiled in, and each kind of layer would
    # compile its own kernel.
    max_distance = torch.full(
        (),
        width + padded_prefix if window is None else window,
        dtype=torch.int32,
        device=segments.device,
    )

    def visible(b, _head, q, k):
        distance = q + padded_prefix - k  # within a row, indices and positions advance together
        own_row = (q_rows[b, q] == k_rows[b, k]) & (distance >= 0) & (distance < max_distance)
        if not prefix_length:
            return own_row
        return own_row | ((k < prefix_length) & (row_positions[b, q] - k < max_distance))

    full, partial = _visible_blocks(
        q_rows.view(lines, -1, block), padded_prefix // block, window, width
    )
    mask = BlockMask.from_kv_blocks(
        *_block_lists(partial),
        *_block_lists(full),
        BLOCK_SIZE=block,
        mask_mod=visible,
        seq_lengths=(width, width + padded_prefix),
        compute_q_blocks=False,
    )
    # The transposed lists, for the backward pass. `compute_q_blocks` would make them from the lists
    # above, in a way that a CUDA graph cannot capture.
    mask.q_num_blocks, mask.q_indices = _block_lists(partial.transpose(1, 2))
    mask.full_q_num_blocks, mask.full_q_indices = _block_lists(full.transpose(1, 2))
    return mask


def _visible_blocks(
    rows: torch.Tensor, prefix_blocks: int, window: int | None, width: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Which key blocks each query block sees as a whole, and which in part.

    Args:
        rows: (B, Q, block) the row of each position; padding has numbers from `width` on.
        prefix_blocks: key blocks of the prefix, before all others; visible in part to every query.
        window: as in `block_mask`.
        width: Q * block.

    Returns:
        Two (B, Q, prefix_blocks + Q) bool grids.
    """
    first, last, block = rows.amin(-1), rows.amax(-1), rows.shape[-1]
    number = torch.arange(first.shape[1], device=rows.device)
    blocks_back = number[:, None] - number
    # Two blocks share a row where their ranges of rows overlap, since a line's rows ascend.
    share_a_row = (first[:, :, None] <= last[:, None, :]) & (first[:, None, :] <= last[:, :, None])
    same_single_row = (
        (first == last)[:, :, None]
        & (first[:, :, None] == first[:, None, :])
        & (last == first)[:, None, :]
        & (last < width)[:, :, None]
    )
    # The diagonal block is causal inside, so it is never visible as a whole.
    needed, full = share_a_row & (blocks_back >= 0), same_single_row & (blocks_back > 0)
    if window is not None:
        nearest, farthest = (blocks_back - 1) * block + 1, (blocks_back + 1) * block - 1
        needed, full = needed & (nearest < window), full & (farthest < window)
    partial = F.pad(needed & ~full, (prefix_blocks, 0), value=True)
    return F.pad(full, (prefix_blocks, 0)), partial


def _block_lists(grid: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A (B, Q, K) bool grid as `BlockMask` lists: (B, 1, Q) counts, (B, 1, Q, K) indices, True
    first."""
    grid = grid[:, None].int()
    indices = torch.argsort(grid, dim=-1, descending=True, stable=True)
    return grid.sum(-1, dtype=torch.int32), indices.int().contiguous()


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | BlockMask | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    prefix: tuple[torch.Tensor, torch.Tensor] | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """The attention function that transformers calls; see the top of this file for its three ways.

    Args:
        module: the attention layer.
        query: (B, heads, Q, head_dim).
        key: (B, key-value heads, K, head_dim).
        value: as `key`.
        attention_mask: `cu_seqlens`, a `BlockMask`, (B, 1, Q, K) bool, or None: plainly causal.
        scaling: factor of the scores; None: 1 / sqrt(head_dim).
        dropout: on the attention weights, for SDPA in training.
        softcap: scores are softcap * tanh(score / softcap); None: uncapped.
        prefix: keys and values, (key-value heads, P, head_dim), before every line. Block masks
            only.

    Returns:
        (B, Q, heads, head_dim), and None for the attention weights.
    """
    if flash_attention.is_cu_seqlens(attention_mask):
        return flash_attention.attend(query, key, value, attention_mask, scaling, softcap), None
    if attention_mask is None:
        keys = key.shape[2]
        all_pairs = torch.ones(query.shape[2], keys, dtype=torch.bool, device=query.device)
        attention_mask = all_pairs.tril(keys - query.shape[2])
    if isinstance(attention_mask, BlockMask):
        if prefix is not None:
            prefix_key, prefix_value = prefix
            key = torch.cat([_prefix_blocks(prefix_key, key), key], 2)
            value = torch.cat([_prefix_blocks(prefix_value, value), value], 2)
        kernel = flex_attention if torch.compiler.is_compiling() else _compiled()
        half = query.is_cuda and query.dtype != torch.float32
        out = kernel(
            query,
            key,
            value,
            _capped(softcap, half),
            attention_mask,
            scale=scaling,
            enable_gqa=query.shape[1] != key.shape[1],
            kernel_options=WIDE_HEAD if query.shape[-1] > 128 else None,
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
        out = _eager_capped(query, key, value, attention_mask, scaling, softcap)
    return out.transpose(1, 2).contiguous(), None


def _eager_capped(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    scaling: float | None,
    softcap: float,
) -> torch.Tensor:
    """Attention with capped scores, which SDPA does not have: (B, heads, Q, head_dim)."""
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    scores = query @ key.transpose(-1, -2) * (scaling or query.shape[-1] ** -0.5)
    scores = torch.tanh(scores / softcap) * softcap
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return scores.float().softmax(-1).to(query.dtype) @ value


def _prefix_blocks(prefix: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """A prefix (heads, P, head_dim) as (B, heads, whole blocks, head_dim), in the type of
    `rows`."""
    length = padded_prefix_length(prefix.shape[1], block_size(rows.shape[-1]))
    padded = F.pad(prefix, (0, 0, 0, length - prefix.shape[1]))
    return padded.to(rows.dtype).expand(rows.shape[0], -1, -1, -1)


def raise_recompile_limit() -> None:
    """Let the compiler make one graph for each packed width; by default it gives up after 8."""
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)


@lru_cache
def _compiled() -> Any:
    raise_recompile_limit()
    register_tanh_lowering()
    return torch.compile(flex_attention, dynamic=False)


@lru_cache
def _capped(softcap: float | None, half: bool) -> Any:
    """Gemma 2's soft-capping as a `score_mod`.

    The cache gives one function object for each cap: a new one at every call would compile again.

    Args:
        softcap: scores are softcap * tanh(score / softcap); None: no `score_mod`.
        half: queries are in 16 bits on a GPU, so that tanh may be approximate.
    """
    if softcap is None:
        return None

    def exact(score, _b, _h, _q, _k):
        # tanh(x) = 2 sigmoid(2 x) - 1, in fewer instructions.
        return softcap * (2 * torch.sigmoid(score * (2 / softcap)) - 1)

    def approximate(score, _b, _h, _q, _k):
        return softcap * FastTanh.apply(score / softcap)

    return approximate if half else exact


AttentionInterface.register(NAME, attend)
# For callers that run the model without the masks of `attention_mask.py`.
AttentionMaskInterface.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
