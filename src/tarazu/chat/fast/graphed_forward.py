"""The decoder's training pass over a packed batch as recordings: a pass costs the host one launch
each way.

See `engine.recording`. Packed widths are few on a GPU, and each has a recording of its own; the
mask is made inside it. The loss stays outside, since the number of answer tokens differs from
batch to batch.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F

from tarazu.chat.model import flex_attention, forward
from tarazu.chat.model.batching import PAD, ChatBatch
from tarazu.chat.model.trainable import TrainableChatModel
from tarazu.engine.cuda_graphs.recorder import GraphedFunction
from tarazu.engine.counts import TokenCounts


def make_graphed_forward(model: TrainableChatModel) -> GraphedFunction:
    """For the passes of `model`, one recording for each packed width (and number of row edges),
    made when it first comes.

    A rare one would be launched as fast, but beside the memory that the recordings hold and share.
    """

    def work(
        ids, virtual_indices, positions, segments, *cu_seqlens_and_length
    ) -> tuple[torch.Tensor]:
        *cu_seqlens, max_row_length = cu_seqlens_and_length
        nothing = ids.new_empty(0)
        batch = ChatBatch(
            ids,
            virtual_indices,
            positions,
            segments,
            nothing,
            nothing,
            nothing,
            TokenCounts(),
            max_row_length,
            *cu_seqlens,
        )
        return (forward.hidden_states(model, batch),)

    return GraphedFunction(work, model.module)


def hidden_states(model: TrainableChatModel, batch: ChatBatch) -> torch.Tensor:
    """As `forward.hidden_states` without a past: from a recording where one is to be had, in
    training."""
    learns = model.module.training and torch.is_grad_enabled()
    if model.graphed_forward is None or not learns or not has_recurring_shape(model, batch):
        return forward.hidden_states(model, batch)
    recorder = model.graphed_forward
    if batch.max_line_width > recorder.capacity() and not recorder.failure_reason:
        # a narrower recording fits into a wider one's memory; a wider one would lie beside all
        # narrower ones, so they are made anew
        recorder.clear()
        stretched = _stretched(batch)
        recorder.prepare(*_inputs(stretched), static_args=_static_args(model, stretched))
    return recorder(*_inputs(batch), static_args=_static_args(model, batch))[0]


def _static_args(model: TrainableChatModel, batch: ChatBatch) -> tuple[int]:
    """`longest`, as far as a pass must know it."""
    return (batch.ids.shape[1] if exceeds_window(model, batch) else 0,)


def _inputs(batch: ChatBatch) -> tuple[torch.Tensor, ...]:
    return (
        batch.ids,
        batch.virtual_indices,
        batch.positions,
        batch.segments,
        *(() if batch.cu_seqlens is None else (batch.cu_seqlens,)),
    )


def _stretched(batch: ChatBatch) -> ChatBatch:
    """Something of the shapes that the widest line has."""
    width = batch.ids.shape[1]
    cu_seqlens = (
        batch.cu_seqlens
        if batch.cu_seqlens is None
        else torch.where(batch.cu_seqlens == width, batch.max_line_width, batch.cu_seqlens)
    )
    filling = {"ids": 0, "virtual_indices": -1, "positions": 0, "segments": PAD}
    return replace(
        batch,
        **{
            name: F.pad(getattr(batch, name), (0, batch.max_line_width - width), value=value)
            for name, value in filling.items()
        },
        cu_seqlens=cu_seqlens,
    )


def has_recurring_shape(model: TrainableChatModel, batch: ChatBatch) -> bool:
    """Whether batches of this shape come again: packed lines, whose widths are rounded; padded
    rows have any shape."""
    lines, width = batch.ids.shape
    return lines == 1 and (
        flex_attention.is_block_aligned(width, batch.ids.device)
        if flex_attention.uses_flex_attention(model.base)
        else width % flex_attention.BLOCK == 0
    )


def exceeds_window(model: TrainableChatModel, batch: ChatBatch) -> bool:
    """All that a pass needs to know of `longest`: whether the sliding window hides anything. A
    plain mask is made without it."""
    window = getattr(model.base.config, "sliding_window", None)
    prefix = model.prefix_length
    return (
        flex_attention.uses_flex_attention(model.base)
        and window is not None
        and batch.max_row_length + prefix > window
    )
