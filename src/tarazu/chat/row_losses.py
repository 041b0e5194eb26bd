"""From rows to batches to losses, for training, evaluation, estimates and invariants."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch

from tarazu.chat.fast import graphed_forward
from tarazu.chat.model import flex_attention
from tarazu.chat.model.batching import ChatBatch, TokenizedRow, bin_pack, make_batch, pack_rows
from tarazu.chat.model.loss import token_losses
from tarazu.chat.model.trainable import TrainableChatModel
from tarazu.chat.prepared_data import ChatData


def tokenized_rows(data: ChatData, split: str, rows: Sequence[int]) -> list[TokenizedRow]:
    """The rows of a split with their tokens, by index."""
    return [TokenizedRow(*data.store.row(split, i), index=i) for i in rows]


def make_batches(
    trainable: TrainableChatModel, rows: list[TokenizedRow], limit: int, packed: bool
) -> list[ChatBatch]:
    """Lay rows out as batches, with the method's virtual tokens before each row.

    Args:
        trainable: the model; its soft prompt or prefix needs positions of its own.
        rows: tokenized rows of any split.
        limit: tokens of one batch; a longer row has a batch of its own.
        packed: whether several rows may share a line.
    """
    prefix, virtual = trainable.prefix_length, trainable.prompt_length
    on_gpu = trainable.base.device.type == "cuda"
    # On a GPU every new width costs planning (0.1 s) or a capture, so lines have few widths there.
    few_widths = packed and (flex_attention.uses_flex_attention(trainable.base) or on_gpu)
    cu_seqlens = few_widths and trainable.use_cu_seqlens
    if few_widths:
        lines = pack_rows(rows, limit, virtual, allow_shorter=cu_seqlens)
    else:
        lines = [(group, None, 0) for group in bin_pack(rows, limit, virtual, packed)]
    return [
        make_batch(
            group,
            virtual,
            prefix,
            width=width,
            with_cu_seqlens=cu_seqlens,
            max_line_width=max_line_width,
        )
        for group, width, max_line_width in lines
    ]


def losses(trainable: TrainableChatModel, batch: ChatBatch) -> torch.Tensor:
    """Cross-entropy of each supervised token in nats, (N,)."""
    hidden = graphed_forward.hidden_states(trainable, batch)  # (B, T, hidden size)
    supervised = hidden.flatten(0, 1).index_select(0, batch.label_positions)
    return token_losses(trainable.base, supervised, batch.labels, trainable.loss_chunk)


def loss_per_row(trainable: TrainableChatModel, batches: list[ChatBatch]) -> dict[int, list[float]]:
    """[summed loss in nats, supervised tokens] of each row, by the row's index."""
    sums: dict[int, list[float]] = defaultdict(lambda: [0.0, 0])
    for batch in batches:
        loss_per_token = losses(trainable, batch.to(trainable.base.device)).cpu()
        for row, nats in zip(batch.label_rows.tolist(), loss_per_token.tolist(), strict=True):
            sums[row][0] += nats
            sums[row][1] += 1
    return sums


def row_losses(
    trainable: TrainableChatModel,
    data: ChatData,
    split: str,
    limit: int,
    max_rows: int | None = None,
) -> list[list[float]]:
    """[summed loss in nats, supervised tokens, bytes of the answer] of each row of a split.

    Args:
        trainable: the model, in the mode that it shall have.
        data: the prepared data.
        split: `train`, `validation` or `test`.
        limit: tokens of one batch.
        max_rows: only the first rows; None: all.
    """
    size = data.size(split)
    chosen = range(min(max_rows or size, size))
    batches = make_batches(trainable, tokenized_rows(data, split, chosen), limit, data.packed)
    sums = loss_per_row(trainable, batches)
    return [[*sums[i], data.store.answer_bytes(split, i)] for i in chosen]


def summed_losses(
    trainable: TrainableChatModel, data: ChatData, rows: list[TokenizedRow], limit: int
) -> list[float]:
    """Summed loss in nats of each row, for rows whose indices are 0, 1, 2, ..."""
    sums = loss_per_row(trainable, make_batches(trainable, rows, limit, data.packed))
    return [sums[row.index][0] for row in rows]
