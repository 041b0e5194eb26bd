"""How rows lie in a batch: each row is its virtual tokens, then its own tokens; rows are padded side by side, or packed.

Padded (left or right), packed, with a soft prompt or a prefix: one description serves all, and `attention.py` turns it
into a mask. A position is counted within the row, after the prefix.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
import torch

from tarazu.engine.counts import TokenCounts

PAD = -1  # segment of a padded place
SHARED = -2  # segment that every row sees: the prefix
BLOCK = 128  # widths of packed lines are multiples of it
MIN_CU_SEQLENS = (
    32  # edges: their number is a power of two from here on, so that recordings are few
)
MAX_SHORT_WIDTHS = 6  # of full lines: each may be one more width to record


@dataclass
class ChatBatch:
    """Rows laid out for one forward pass of B lines of T places.

    Args:
        ids: (B, T) token ids; 0 where a virtual token or padding stands.
        virtual_indices: (B, T) index of the virtual token, -1 elsewhere.
        positions: (B, T) position within the row, counted after a prefix.
        segments: (B, T) which row a place belongs to, or `PAD`.
        label_positions: (N,) flat places whose hidden state predicts a supervised token.
        labels: (N,) those tokens.
        label_rows: (N,) the row, as an index into the rows given, that each label belongs to.
        counts: for the ledger.
        max_row_length: places of the longest row, virtual tokens included.
        cu_seqlens: (E,) where rows begin and end (`make_cu_seqlens`); None: attention is by a mask.
        max_line_width: places of the widest line that is to be expected soon, this one's or more.
    """

    ids: torch.Tensor
    virtual_indices: torch.Tensor
    positions: torch.Tensor
    segments: torch.Tensor
    label_positions: torch.Tensor
    labels: torch.Tensor
    label_rows: torch.Tensor
    counts: TokenCounts
    max_row_length: int = 0
    cu_seqlens: torch.Tensor | None = None
    max_line_width: int = 0

    def to(self, device: torch.device) -> ChatBatch:
        if device.type == "cpu":
            return self
        moved = {
            f.name: getattr(self, f.name).pin_memory().to(device, non_blocking=True)
            for f in fields(self)
            if isinstance(getattr(self, f.name), torch.Tensor)
        }
        return replace(self, **moved)


@dataclass(frozen=True)
class TokenizedRow:
    """One row's tokens (n,) and which of them are under the loss (n,); `index` tells rows apart."""

    ids: np.ndarray
    supervised: np.ndarray
    index: int = 0


def make_batch(
    lines: list[list[TokenizedRow]],
    num_virtual_tokens: int = 0,
    prefix_length: int = 0,
    pad_left: bool = False,
    width: int | None = None,
    with_cu_seqlens: bool = False,
    max_line_width: int = 0,
) -> ChatBatch:
    """Lays lines of rows (one row a line when padded, several when packed) on a (B, T) grid.

    Args:
        lines: for each line, its rows, one after the other.
        num_virtual_tokens: soft-prompt tokens before every row.
        prefix_length: key-value positions before every row; they take no place but move positions on.
        pad_left: pad on the left, as generation needs it.
        width: T; default the longest line.
        with_cu_seqlens: with the edges of the rows, for attention that needs no mask.
        max_line_width: as in `ChatBatch`; 0: unknown.
    """
    sizes = [sum(num_virtual_tokens + len(row.ids) for row in line) for line in lines]
    width = max([width or 0, *sizes])
    shape = (len(lines), width)
    ids, index = np.zeros(shape, np.int64), np.full(shape, -1, np.int64)
    positions, segments = np.zeros(shape, np.int64), np.full(shape, PAD, np.int64)
    sources, labels, owners, starts, number = [], [], [], [], 0
    for b, (line, size) in enumerate(zip(lines, sizes, strict=True)):
        at = width - size if pad_left else 0
        starts += [b * width] if at else []
        for row in line:
            starts.append(b * width + at)
            start, end = at + num_virtual_tokens, at + num_virtual_tokens + len(row.ids)
            ids[b, start:end] = row.ids
            index[b, at:start] = np.arange(num_virtual_tokens)
            positions[b, at:end] = np.arange(end - at) + prefix_length
            segments[b, at:end] = number
            marked = np.flatnonzero(row.supervised)
            marked = marked[
                marked + num_virtual_tokens > 0
            ]  # a row's first token has nothing before it to predict it from
            sources.append(b * width + start + marked - 1)
            labels.append(row.ids[marked])
            owners.append(np.full(len(marked), row.index))
            at, number = end, number + 1
        starts += [b * width + at] if at < width else []
    rows = [row for line in lines for row in line]
    tokens, flat = sum(len(row.ids) for row in rows), np.concatenate
    counts = TokenCounts(
        len(rows),
        tokens,
        sum(map(len, labels)),
        width * len(lines) - sum(sizes),
        (num_virtual_tokens + prefix_length) * len(rows),
    )
    arrays = (
        ids,
        index,
        positions,
        segments,
        flat(sources),
        flat(labels).astype(np.int64),
        flat(owners),
    )
    longest = max((num_virtual_tokens + len(row.ids) for row in rows), default=0)
    made = (
        torch.from_numpy(make_cu_seqlens(starts, width * len(lines))) if with_cu_seqlens else None
    )
    return ChatBatch(
        *(torch.from_numpy(np.ascontiguousarray(a)) for a in arrays),
        counts,
        longest,
        made,
        max(width, max_line_width),
    )


def make_cu_seqlens(starts: list[int], places: int) -> np.ndarray:
    """(E,) int32: where each row begins in the flat places, and the end, as often as it takes to fill up to E.

    Args:
        starts: first place of each row, ascending from 0; places between rows are a row too.
        places: how many there are in all.
    """
    size = max(MIN_CU_SEQLENS, 1 << len(starts).bit_length())
    return np.array(starts + [places] * (size - len(starts)), np.int32)


def bin_pack(
    rows: list[TokenizedRow], limit: int, num_virtual_tokens: int, packed: bool
) -> list[list[list[TokenizedRow]]]:
    """The rows as batches of lines, no batch larger than `limit` places unless one row alone is.

    Padded: rows of like length together. Packed: one line a batch, filled longest row first (first fit decreasing), so that
    all lines but the last few are full.
    """
    rows = sorted(rows, key=lambda row: -len(row.ids))
    if not packed:
        batches: list[list[TokenizedRow]] = []
        for row in rows:
            longest = len(batches[-1][0].ids) + num_virtual_tokens if batches else 0
            if batches and longest * (len(batches[-1]) + 1) <= limit:
                batches[-1].append(row)
            else:
                batches.append([row])
        return [[[row] for row in batch] for batch in batches]
    bins: list[tuple[int, list[TokenizedRow]]] = []
    for row in rows:
        size = len(row.ids) + num_virtual_tokens
        for i, (used, line) in enumerate(bins):
            if used + size <= limit:
                bins[i] = (used + size, [*line, row])
                break
        else:
            bins.append((size, [row]))
    return [[line] for _, line in bins]


def pack_rows(
    rows: list[TokenizedRow], limit: int, num_virtual_tokens: int, allow_shorter: bool = False
) -> list[tuple[list[list[TokenizedRow]], int, int]]:
    """The packed batches of `group`, each with the width that its line is filled up to, and the widest that a full line may have.

    Widths are sixteenths of `limit`, so that they are few. Those of a step then add up to whole sixteenths, and half of one is
    padding on average, a fiftieth of a step in two lines. With `allow_shorter` full lines may end a few blocks before `limit`, all of
    a step's alike: that of the few ends which needs the fewest places is taken.
    """
    step = max(BLOCK, limit // 16 // BLOCK * BLOCK)

    def width(size: int, most: int) -> int:
        return min(_whole(size, step), _whole(most, BLOCK)) if size <= most else _whole(size, step)

    tried = []
    for most in (
        range(limit, limit - min(step, MAX_SHORT_WIDTHS * BLOCK), -BLOCK)
        if allow_shorter
        else (limit,)
    ):
        batches = bin_pack(rows, most, num_virtual_tokens, packed=True)
        tried.append(
            [
                (batch, width(sum(num_virtual_tokens + len(row.ids) for row in batch[0]), most))
                for batch in batches
            ]
        )
    best = min(tried, key=lambda batches: sum(size for _, size in batches))
    return [
        (batch, size, _whole(limit, BLOCK) if limit - step < size <= limit else size)
        for batch, size in best
    ]


def _whole(size: int, step: int) -> int:
    return -(-size // step) * step
