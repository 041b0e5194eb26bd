"""Which place sees which: one rule for padded, packed and left-padded rows, with or without a prefix.

A place sees the places of its own row, and the shared prefix, that are not after it and not beyond the sliding window.
The mask is always given to transformers whole (4D, one per layer type): its own detection of packed rows turns itself off
silently when a cache or a 2D mask is there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask
from transformers import PretrainedConfig

from tarazu.chat.model import flex_attention
from tarazu.chat.model.batching import PAD, SHARED, ChatBatch


def visibility_mask(
    q_segments, k_segments, q_positions, k_positions, window: int | None
) -> torch.Tensor:
    """(B, Q, K) bool, True where a query may look.

    Args:
        q_segments, q_positions: (B, Q) of the queries, which are the last Q of the keys.
        k_segments, k_positions: (B, K) of the keys.
        window: places further back than this are hidden; None: no limit.
    """
    q_segments, q_positions = q_segments[:, :, None], q_positions[:, :, None]
    k_segments, k_positions = k_segments[:, None, :], k_positions[:, None, :]
    seen = ((q_segments == k_segments) & (q_segments != PAD)) | (k_segments == SHARED)
    seen &= k_positions <= q_positions
    if window is not None:
        seen &= q_positions - k_positions < window
    queries, keys = seen.shape[1:]
    itself = (
        torch.arange(keys, device=seen.device)
        == torch.arange(keys - queries, keys, device=seen.device)[:, None]
    )
    return seen | (
        itself & (q_segments == PAD)
    )  # padding looks at itself: a softmax over nothing would be NaN


def dense_masks(
    config: PretrainedConfig, dtype: torch.dtype, *grid: torch.Tensor
) -> torch.Tensor | dict[str, torch.Tensor]:
    """The mask(s) that the model's layers take: (B, 1, Q, K), bool for SDPA, additive for eager.

    Args:
        config: of the model; says whether its layers are of several types.
        dtype: of the hidden states.
        grid: q_segments, k_segments, q_positions, k_positions as in `visible`.
    """

    def ready(window: int | None) -> torch.Tensor:
        seen = visibility_mask(*grid, window)[:, None]
        if config._attn_implementation != "eager":
            return seen
        return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(
            ~seen, torch.finfo(dtype).min
        )

    return _by_type(config, ready)


def sparse_mask(config: PretrainedConfig, batch: ChatBatch, prefix: int) -> Any:
    """The same rule as row edges (`flash.py`) or as flex attention's blocks; None where the model or the batch is not for them."""
    if batch.cu_seqlens is not None:
        return _by_type(config, lambda _window: batch.cu_seqlens[None, None, None])
    if config._attn_implementation != flex_attention.NAME or not flex_attention.is_block_aligned(
        batch.ids.shape[1], batch.ids.device
    ):
        return None
    made: dict[int | None, BlockMask] = {}
    block = flex_attention.block_size(
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )

    def ready(window: int | None) -> BlockMask:
        beyond = (
            None if window is None or batch.max_row_length + prefix <= window else window
        )  # a wide window hides nothing
        if beyond not in made:
            made[beyond] = flex_attention.block_mask(
                batch.segments, batch.positions, prefix, beyond, block
            )
        return made[beyond]

    return _by_type(config, ready)


def _by_type(config: PretrainedConfig, ready: Callable[[int | None], Any]) -> Any:
    """`ready(window)` for the model, or a dict of it for each type of layer."""
    types = set(getattr(config, "layer_types", None) or [])
    window = getattr(config, "sliding_window", None)
    if len(types) > 1 or config.model_type in ("gemma2", "gemma3_text", "gemma3"):
        return {
            kind: ready(window if kind == "sliding_attention" else None) for kind in sorted(types)
        }
    sliding = types == {"sliding_attention"} or (
        not types and window and getattr(config, "use_sliding_window", True)
    )
    return ready(window if sliding else None)
