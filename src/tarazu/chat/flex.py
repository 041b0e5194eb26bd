"""Attention that skips the blocks of other rows: packed rows on a GPU cost what they would cost alone.

FlexAttention (Dong et al. 2024, arXiv:2412.05496) behind transformers' attention interface, under the name "tarazu_flex".
With a plain mask (generation, uneven sizes) the same name is PyTorch's SDPA, or plain arithmetic where scores are capped.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from tarazu.chat.layout import PAD, SHARED

NAME = "tarazu_flex"
BLOCK = 128  # places; a packed line is a multiple of this


def block_mask(q_segments, k_segments, q_positions, k_positions, window: int | None) -> BlockMask:
    """The rule of `attention.visible`, (B, Q) and (B, K) grids, as blocks that are either needed or skipped."""
    (lines, queries), keys = q_segments.shape, k_segments.shape[1]
    ahead = keys - queries

    def rule(b, _head, q, k):
        same = (q_segments[b, q] == k_segments[b, k]) & (q_segments[b, q] != PAD)
        back = q_positions[b, q] - k_positions[b, k]
        seen = (same | (k_segments[b, k] == SHARED)) & (back >= 0)
        if window is not None:
            seen = seen & (back < window)
        return seen | ((k == q + ahead) & (q_segments[b, q] == PAD))

    return create_block_mask(rule, lines, None, queries, keys, device=q_segments.device, BLOCK_SIZE=BLOCK)


def fits(queries: int, keys: int, device: torch.device) -> bool:
    """Whether blocks pay: on a GPU, for whole blocks of places, more than a few."""
    return device.type == "cuda" and queries % BLOCK == 0 and queries >= 2 * BLOCK and keys >= queries


def attend(module, query, key, value, attention_mask, scaling=None, dropout=0.0, softcap=None, **_):
    """transformers' attention function: (B, heads, Q, size) queries -> (B, Q, heads, size)."""
    if attention_mask is None:  # transformers' word for "plainly causal"
        attention_mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril(key.shape[2] - query.shape[2])
    if isinstance(attention_mask, BlockMask):
        out = _compiled()(query, key, value, score_mod=_capped(softcap), block_mask=attention_mask, scale=scaling, enable_gqa=query.shape[1] != key.shape[1])
    elif softcap is None:
        out = F.scaled_dot_product_attention(query, key, value, attention_mask, dropout if module.training else 0.0, scale=scaling, enable_gqa=query.shape[1] != key.shape[1])
    else:
        repeats = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
        scores = torch.tanh(query @ key.transpose(-1, -2) * (scaling or query.shape[-1] ** -0.5) / softcap) * softcap
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
        out = scores.float().softmax(-1).to(query.dtype) @ value
    return out.transpose(1, 2).contiguous(), None


@lru_cache
def _compiled():
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)  # one graph per packed width
    return torch.compile(flex_attention, dynamic=False)


@lru_cache
def _capped(softcap: float | None):
    """Gemma 2's softcapping; one function object per cap, or every call would compile anew."""
    if softcap is None:
        return None

    def score_mod(score, _b, _h, _q, _k):
        return softcap * torch.tanh(score / softcap)

    return score_mod


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])  # for who calls the model without our masks
