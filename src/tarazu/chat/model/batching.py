"""How rows lie in a batch: padded side by side, or packed one after another into a line.

A batch is a grid of B lines of T positions. Two packed rows of 3 and 2 tokens, each after one
token of a soft prompt (`v`), in a line of 8 positions:

    ids               0  a  b  c  0  d  e  0     0 where a virtual token or padding stands
    virtual_indices   0 -1 -1 -1  0 -1 -1 -1     which vector of the soft prompt, -1 elsewhere
    segments          0  0  0  0  1  1  1 -1     which row; -1 is padding
    positions         0  1  2  3  0  1  2  0     within the row, from P after a prefix of P
    cu_seqlens       [0, 4, 7, 8, 8, ...]        row boundaries in the flat (B * T) positions

                      keys
                      v  a  b  c  v  d  e  .
    queries    v      1  .  .  .  .  .  .  .
               a      1  1  .  .  .  .  .  .
               b      1  1  1  .  .  .  .  .
               c      1  1  1  1  .  .  .  .
               v      .  .  .  .  1  .  .  .
               d      .  .  .  .  1  1  .  .     label_positions  [2, 5]
               e      .  .  .  .  1  1  1  .     labels           [c, e]
               .      .  .  .  .  .  .  .  1     label_rows       [0, 1]

`attention_mask.visibility_mask` turns segments and positions into the mask (1 = visible);
FlashAttention needs only `cu_seqlens`. A label is predicted at the position before it: above, c and
e are supervised. In a padded batch each line holds one row. A prefix takes no position in the grid:
its keys and values precede every line and every row sees them (the mask gives them the segment
`SHARED`). Padding sees itself: a softmax over no key at all would be NaN.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
import torch

from tarazu.engine.counts import TokenCounts

PAD = -1  # segment of padding
SHARED = -2  # segment of the prefix, which every row sees
BLOCK = 128  # widths of packed lines are whole blocks: the block size of flex attention
# The shortest cu_seqlens. Longer ones are padded to powers of two, so that few CUDA graphs are
# needed.
MIN_CU_SEQLENS = 32
# How many widths of a full line `pack_rows` tries, `limit` included. Each may cost one CUDA graph
# more.
MAX_LINE_ENDS = 6

Line = list["TokenizedRow"]  # the rows of one line, in order
Lines = list[Line]  # the lines of one batch


@dataclass(frozen=True)
class TokenizedRow:
    """The tokens of one row.

    Args:
        ids: (n,) token ids.
        supervised: (n,) bool, True where the token is under the loss.
        index: number of the row among those laid out together; becomes `ChatBatch.label_rows`.
    """

    ids: np.ndarray
    supervised: np.ndarray
    index: int = 0


@dataclass
class ChatBatch:
    """Rows laid out for one forward pass, as drawn at the top of this file.

    Args:
        ids: (B, T) token ids; 0 where a virtual token or padding stands.
        virtual_indices: (B, T) index of the virtual token, -1 elsewhere.
        positions: (B, T) position within the row, counted after a prefix.
        segments: (B, T) number of the row in the batch, or `PAD`.
        label_positions: (N,) flat positions (into B * T) whose hidden state predicts a label.
        labels: (N,) the supervised tokens.
        label_rows: (N,) `TokenizedRow.index` of the row of each label.
        counts: numbers of tokens, for the ledger.
        max_row_length: positions of the longest row, virtual tokens included.
        cu_seqlens: (E,) int32 row boundaries, see `make_cu_seqlens`; None: attention uses a mask.
        max_line_width: T of the widest line that may come, at least this batch's. A CUDA graph of
            that width is captured first.
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
        """The batch on `device`. Copies to a GPU go through pinned memory and do not block."""
        if device.type == "cpu":
            return self
        moved = {
            f.name: getattr(self, f.name).pin_memory().to(device, non_blocking=True)
            for f in fields(self)
            if isinstance(getattr(self, f.name), torch.Tensor)
        }
        return replace(self, **moved)


def make_batch(
    lines: Lines,
    num_virtual_tokens: int = 0,
    prefix_length: int = 0,
    pad_left: bool = False,
    width: int | None = None,
    with_cu_seqlens: bool = False,
    max_line_width: int = 0,
) -> ChatBatch:
    """Lay lines of rows (one row a line when padded, several when packed) on a (B, T) grid.

    Args:
        lines: for each line, its rows in order.
        num_virtual_tokens: soft-prompt tokens before every row.
        prefix_length: key-value positions before every row. They take no position in the grid, but
            `positions` start at `prefix_length`.
        pad_left: pad on the left, as generation needs it.
        width: smallest T; a longer line widens it. None: the longest line.
        with_cu_seqlens: give row boundaries, for attention without a mask.
        max_line_width: as in `ChatBatch`; 0: unknown.

    Returns:
        The batch, on the CPU.
    """
    line_sizes = [sum(num_virtual_tokens + len(row.ids) for row in line) for line in lines]
    width = max([width or 0, *line_sizes])
    grid = (len(lines), width)
    ids, virtual_indices = np.zeros(grid, np.int64), np.full(grid, -1, np.int64)
    positions, segments = np.zeros(grid, np.int64), np.full(grid, PAD, np.int64)
    label_positions, labels, label_rows, row_starts = [], [], [], []
    segment = 0
    for b, (line, line_size) in enumerate(zip(lines, line_sizes, strict=True)):
        column = width - line_size if pad_left else 0
        if column:  # padding is a row of its own for cu_seqlens, on the left as on the right
            row_starts.append(b * width)
        for row in line:
            row_starts.append(b * width + column)
            start = column + num_virtual_tokens
            end = start + len(row.ids)
            ids[b, start:end] = row.ids
            virtual_indices[b, column:start] = np.arange(num_virtual_tokens)
            positions[b, column:end] = np.arange(end - column) + prefix_length
            segments[b, column:end] = segment
            supervised = np.flatnonzero(row.supervised)
            # A row's first token has no position before it, unless virtual tokens stand there.
            supervised = supervised[supervised + num_virtual_tokens > 0]
            label_positions.append(b * width + start + supervised - 1)
            labels.append(row.ids[supervised])
            label_rows.append(np.full(len(supervised), row.index))
            column = end
            segment += 1
        if column < width:
            row_starts.append(b * width + column)
    rows = [row for line in lines for row in line]
    counts = TokenCounts(
        rows=len(rows),
        tokens=sum(len(row.ids) for row in rows),
        supervised=sum(map(len, labels)),
        padding=width * len(lines) - sum(line_sizes),
        virtual=(num_virtual_tokens + prefix_length) * len(rows),
    )
    cu_seqlens = make_cu_seqlens(row_starts, width * len(lines)) if with_cu_seqlens else None
    return ChatBatch(
        ids=torch.from_numpy(ids),
        virtual_indices=torch.from_numpy(virtual_indices),
        positions=torch.from_numpy(positions),
        segments=torch.from_numpy(segments),
        label_positions=torch.from_numpy(np.concatenate(label_positions)),
        labels=torch.from_numpy(np.concatenate(labels).astype(np.int64)),
        label_rows=torch.from_numpy(np.concatenate(label_rows)),
        counts=counts,
        max_row_length=max((num_virtual_tokens + len(row.ids) for row in rows), default=0),
        cu_seqlens=None if cu_seqlens is None else torch.from_numpy(cu_seqlens),
        max_line_width=max(width, max_line_width),
    )


def make_cu_seqlens(starts: list[int], num_positions: int) -> np.ndarray:
    """Cumulative sequence lengths, as FlashAttention takes them.

    Args:
        starts: first flat position of each row, ascending from 0; padding counts as a row.
        num_positions: B * T.

    Returns:
        (E,) int32: the starts, then `num_positions`, repeated until there are E entries. The
        repeated boundaries are rows of length 0.
    """
    # The next power of two above the number of starts, so that the end always fits.
    size = max(MIN_CU_SEQLENS, 1 << len(starts).bit_length())
    return np.array(starts + [num_positions] * (size - len(starts)), np.int32)


def bin_pack(
    rows: list[TokenizedRow], limit: int, num_virtual_tokens: int, packed: bool
) -> list[Lines]:
    """Distribute rows over batches of at most `limit` positions. A longer row has its own batch.

    Args:
        rows: the rows.
        limit: largest number of positions in a batch.
        num_virtual_tokens: soft-prompt tokens before every row; they count.
        packed: True: each batch is one line of many rows. False: each line is one row, and a batch
            holds rows of similar length.

    Returns:
        For each batch, its lines.
    """
    rows = sorted(rows, key=lambda row: -len(row.ids))
    if not packed:
        batches: list[list[TokenizedRow]] = []
        for row in rows:
            # The first row of a batch is its longest, as rows are sorted.
            width = len(batches[-1][0].ids) + num_virtual_tokens if batches else 0
            if batches and width * (len(batches[-1]) + 1) <= limit:
                batches[-1].append(row)
            else:
                batches.append([row])
        return [[[row] for row in batch] for batch in batches]
    # First fit decreasing: the longest row first, each into the first line that has space. All
    # lines but the last few become full.
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
) -> list[tuple[Lines, int, int]]:
    """Pack rows into lines of few different widths, as CUDA graphs and compiled code need them.

    Widths are multiples of `unit`, about limit / 16 in whole blocks. On average a line that is not
    full has half a unit of padding, about 3% of `limit`.

    Args:
        rows: the rows.
        limit: largest width, unless one row alone is longer.
        num_virtual_tokens: soft-prompt tokens before every row.
        allow_shorter: let full lines be a few blocks shorter than `limit`. All full lines of one
            call
            share that length; the one with the fewest positions in total is taken.

    Returns:
        For each batch: its one line, the width to pad it to, and `max_line_width`: `limit` in whole
        blocks for a full line, otherwise the line's own width.
    """
    unit = max(BLOCK, limit // 16 // BLOCK * BLOCK)
    stop = limit - min(unit, MAX_LINE_ENDS * BLOCK)
    ends = range(limit, stop, -BLOCK) if allow_shorter else (limit,)
    layouts = [_lines_up_to(end, rows, unit, num_virtual_tokens) for end in ends]
    smallest = min(layouts, key=lambda layout: sum(width for _, width in layout))
    return [
        (lines, width, _round_up(limit, BLOCK) if limit - unit < width <= limit else width)
        for lines, width in smallest
    ]


def _lines_up_to(
    end: int, rows: list[TokenizedRow], unit: int, num_virtual_tokens: int
) -> list[tuple[Lines, int]]:
    """The packed batches whose full lines end at `end`, with widths in multiples of `unit`."""
    layout = []
    for lines in bin_pack(rows, end, num_virtual_tokens, packed=True):
        size = sum(num_virtual_tokens + len(row.ids) for row in lines[0])
        width = _round_up(size, unit)
        if size <= end:  # otherwise it is one row longer than `end`, which keeps its width
            width = min(width, _round_up(end, BLOCK))
        layout.append((lines, width))
    return layout


def _round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
