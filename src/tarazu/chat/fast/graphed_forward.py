"""The decoder's training pass over a packed batch as CUDA graphs: one launch for each direction.

See `engine/cuda_graphs/recorder.py`. Packed widths are few on a GPU (`batching.pack_rows`), and
each has graphs of its own; the mask is computed inside them. The loss stays outside, because the
number of supervised tokens differs from batch to batch.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F

from tarazu.chat.model import flex_attention, forward
from tarazu.chat.model.batching import BLOCK, PAD, ChatBatch
from tarazu.chat.model.trainable import TrainableChatModel
from tarazu.engine.counts import TokenCounts
from tarazu.engine.cuda_graphs.recorder import GraphedFunction

PADDING = {"ids": 0, "virtual_indices": -1, "positions": 0, "segments": PAD}


def make_graphed_forward(model: TrainableChatModel) -> GraphedFunction:
    """Graphs of the model's training pass, captured for each packed width when it first comes.

    The number of row boundaries (`cu_seqlens`) is part of the shape. Rare widths are captured,
    too: run eagerly, they would allocate memory outside the pool that the graphs share.
    """

    def work(
        ids: torch.Tensor,
        virtual_indices: torch.Tensor,
        positions: torch.Tensor,
        segments: torch.Tensor,
        *cu_seqlens_and_length: torch.Tensor | int,
    ) -> tuple[torch.Tensor]:
        *cu_seqlens, max_row_length = cu_seqlens_and_length
        no_labels = ids.new_empty(0)
        batch = ChatBatch(
            ids,
            virtual_indices,
            positions,
            segments,
            label_positions=no_labels,
            labels=no_labels,
            label_rows=no_labels,
            counts=TokenCounts(),
            max_row_length=max_row_length,
            cu_seqlens=cu_seqlens[0] if cu_seqlens else None,
        )
        return (forward.hidden_states(model, batch),)

    return GraphedFunction(work, model.module)


def hidden_states(model: TrainableChatModel, batch: ChatBatch) -> torch.Tensor:
    """`forward.hidden_states` without a KV cache; in training from graphs where possible.

    Args:
        model: the model.
        batch: the batch, on the model's device.

    Returns:
        (B, T, width), the last hidden states.
    """
    graphed = model.graphed_forward
    trains = model.module.training and torch.is_grad_enabled()
    if graphed is None or not trains or not has_recurring_shape(model, batch):
        return forward.hidden_states(model, batch)
    if batch.max_line_width > graphed.capacity() and not graphed.failure_reason:
        # Graphs of narrower lines reuse the memory of a wider one, but a wider one that is captured
        # later needs memory besides. So discard all and capture the widest line to expect first.
        graphed.clear()
        widest = _padded_to_widest(batch)
        graphed.prepare(*_inputs(widest), static_args=_static_args(model, widest))
    return graphed(*_inputs(batch), static_args=_static_args(model, batch))[0]


def has_recurring_shape(model: TrainableChatModel, batch: ChatBatch) -> bool:
    """Whether the shape will come again: packed lines have rounded widths, padded rows any
    shape."""
    lines, width = batch.ids.shape
    if lines != 1:
        return False
    if flex_attention.uses_flex_attention(model.base):
        return flex_attention.is_block_aligned(width, batch.ids.device)
    return width % BLOCK == 0


def exceeds_window(model: TrainableChatModel, batch: ChatBatch) -> bool:
    """Whether a row may be longer than the sliding window: all that a pass depends on in row
    lengths.

    Only block masks depend on it; dense masks always apply the window.
    """
    window = getattr(model.base.config, "sliding_window", None)
    if window is None or not flex_attention.uses_flex_attention(model.base):
        return False
    return batch.max_row_length + model.prefix_length > window


def _static_args(model: TrainableChatModel, batch: ChatBatch) -> tuple[int]:
    """A `max_row_length` for the graph: of the whole line if the window matters, else 0."""
    return (batch.ids.shape[1] if exceeds_window(model, batch) else 0,)


def _inputs(batch: ChatBatch) -> tuple[torch.Tensor, ...]:
    """The tensors of a batch that the pass reads."""
    inputs = (batch.ids, batch.virtual_indices, batch.positions, batch.segments)
    return inputs if batch.cu_seqlens is None else (*inputs, batch.cu_seqlens)


def _padded_to_widest(batch: ChatBatch) -> ChatBatch:
    """The batch padded to the widest line to expect; only its shapes matter."""
    width = batch.ids.shape[1]
    missing = batch.max_line_width - width
    padded = {
        name: F.pad(getattr(batch, name), (0, missing), value=value)
        for name, value in PADDING.items()
    }
    cu_seqlens = batch.cu_seqlens
    if cu_seqlens is not None:
        cu_seqlens = torch.where(cu_seqlens == width, batch.max_line_width, cu_seqlens)
    return replace(batch, **padded, cu_seqlens=cu_seqlens)
