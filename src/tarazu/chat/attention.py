"""Which place sees which: one rule for padded, packed and left-padded rows, with or without a prefix.

A place sees the places of its own row, and the shared prefix, that are not after it and not beyond the sliding window.
The mask is always given to transformers whole (4D, one per layer type): its own detection of packed rows turns itself off
silently when a cache or a 2D mask is there.
"""

from __future__ import annotations

import torch
from transformers import PretrainedConfig

from tarazu.chat import flex
from tarazu.chat.layout import PAD, SHARED


def visible(q_segments, k_segments, q_positions, k_positions, window: int | None) -> torch.Tensor:
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
    itself = torch.arange(keys, device=seen.device) == torch.arange(keys - queries, keys, device=seen.device)[:, None]
    return seen | (itself & (q_segments == PAD))  # padding looks at itself: a softmax over nothing would be NaN


def masks(config: PretrainedConfig, dtype: torch.dtype, *grid: torch.Tensor) -> torch.Tensor | dict[str, torch.Tensor]:
    """The mask(s) that the model's layers take: (B, 1, Q, K), bool for SDPA, additive for eager, blocks for flex attention.

    Args:
        config: of the model; says whether its layers are of several types.
        dtype: of the hidden states.
        grid: q_segments, k_segments, q_positions, k_positions as in `visible`.
    """

    q_segments, k_segments = grid[:2]
    blocks = config._attn_implementation == flex.NAME and flex.fits(q_segments.shape[1], k_segments.shape[1], q_segments.device)

    def ready(window: int | None) -> torch.Tensor:
        if blocks:
            return flex.block_mask(*grid, window)
        seen = visible(*grid, window)[:, None]
        if config._attn_implementation != "eager":
            return seen
        return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)

    types = set(getattr(config, "layer_types", None) or [])
    window = getattr(config, "sliding_window", None)
    if len(types) > 1 or config.model_type in ("gemma2", "gemma3_text", "gemma3"):
        return {kind: ready(window if kind == "sliding_attention" else None) for kind in sorted(types)}
    sliding = types == {"sliding_attention"} or (not types and window and getattr(config, "use_sliding_window", True))
    return ready(window if sliding else None)
