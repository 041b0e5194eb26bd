"""Which position attends to which: one rule for padded, packed and left-padded rows, with or
without a prefix.

A position sees the positions of its own row and of the shared prefix that are neither after it nor
beyond the sliding window. transformers always gets the complete mask (4D, one per layer type): its
own detection of packed rows turns itself off without a warning when it is given a cache or a 2D
mask.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask
from transformers import PretrainedConfig

from tarazu.chat.model import flash_attention, flex_attention
from tarazu.chat.model.batching import PAD, SHARED, ChatBatch

TWO_MASKS = ("gemma2", "gemma3_text", "gemma3")  # their decoders always take a dict of masks


def visibility_mask(
    q_segments: torch.Tensor,
    k_segments: torch.Tensor,
    q_positions: torch.Tensor,
    k_positions: torch.Tensor,
    window: int | None,
) -> torch.Tensor:
    """Which keys each query attends to.

    Args:
        q_segments: (B, Q) segments of the queries, which are the last Q of the keys.
        k_segments: (B, K) segments of the keys.
        q_positions: (B, Q) positions of the queries.
        k_positions: (B, K) positions of the keys.
        window: keys this many positions back or more are hidden; None: no limit.

    Returns:
        (B, Q, K) bool, True where the query sees the key.
    """
    q_segments, q_positions = q_segments[:, :, None], q_positions[:, :, None]
    k_segments, k_positions = k_segments[:, None, :], k_positions[:, None, :]
    visible = ((q_segments == k_segments) & (q_segments != PAD)) | (k_segments == SHARED)
    visible &= k_positions <= q_positions
    if window is not None:
        visible &= q_positions - k_positions < window
    # Padding sees itself: a softmax over no key at all would be NaN.
    queries, keys = visible.shape[1:]
    key_index = torch.arange(keys, device=visible.device)
    diagonal = key_index == key_index[keys - queries :, None]
    return visible | (diagonal & (q_segments == PAD))


def dense_masks(
    config: PretrainedConfig, dtype: torch.dtype, *grid: torch.Tensor
) -> torch.Tensor | dict[str, torch.Tensor]:
    """The masks that the model's layers take.

    Args:
        config: the model's configuration; it says whether layers are of several types.
        dtype: of the hidden states.
        grid: q_segments, k_segments, q_positions, k_positions as in `visibility_mask`.

    Returns:
        (B, 1, Q, K): bool for SDPA, additive in `dtype` for eager attention. For models with
        layers of several types a dict from type to mask.
    """

    def mask_for(window: int | None) -> torch.Tensor:
        visible = visibility_mask(*grid, window)[:, None]
        if config._attn_implementation != "eager":
            return visible
        additive = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
        return additive.masked_fill(~visible, torch.finfo(dtype).min)

    return _per_layer_type(config, mask_for)


def sparse_mask(config: PretrainedConfig, batch: ChatBatch, prefix_length: int) -> Any:
    """The same rule without a (T, T) mask, where the batch and the model allow it.

    Args:
        config: the model's configuration.
        batch: the batch.
        prefix_length: key-value positions before every row.

    Returns:
        `cu_seqlens` as (1, 1, 1, E) for FlashAttention, a `BlockMask` for flex attention, or a
        dict of these per layer type; None: use `dense_masks`.
    """
    if batch.cu_seqlens is not None:
        return _per_layer_type(config, lambda _window: batch.cu_seqlens[None, None, None])
    aligned = flex_attention.is_block_aligned(batch.ids.shape[1], batch.ids.device)
    if config._attn_implementation != flex_attention.NAME or not aligned:
        return None
    block = flex_attention.block_size(flash_attention.head_dim(config))
    masks: dict[int | None, BlockMask] = {}

    def mask_for(window: int | None) -> BlockMask:
        # A window as long as the longest row hides nothing: both layer types then share one mask.
        if window is not None and batch.max_row_length + prefix_length <= window:
            window = None
        if window not in masks:
            masks[window] = flex_attention.block_mask(
                batch.segments, batch.positions, prefix_length, window, block
            )
        return masks[window]

    return _per_layer_type(config, mask_for)


def _per_layer_type(config: PretrainedConfig, mask_for: Callable[[int | None], Any]) -> Any:
    """`mask_for(window)` for the model, or a dict of it for each type of layer."""
    types = set(getattr(config, "layer_types", None) or [])
    window = getattr(config, "sliding_window", None)
    if len(types) > 1 or config.model_type in TWO_MASKS:
        return {
            kind: mask_for(window if kind == "sliding_attention" else None)
            for kind in sorted(types)
        }
    sliding = types == {"sliding_attention"} or (
        not types and window and getattr(config, "use_sliding_window", True)
    )
    return mask_for(window if sliding else None)
