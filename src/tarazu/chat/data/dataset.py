"""The tokenized rows of a study, split: read from an Arrow file that is memory-mapped, not loaded.

`prepare` takes the file from the cache or writes it (`row_file.py`), then assigns the rows to
splits (`split.py`). The split is not part of the file, so another seed costs nothing. Memory: about
100 bytes for each row, whatever its length.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tarazu.chat.data import row_file, statistics
from tarazu.chat.data.chat_template import Template
from tarazu.chat.data.conversation import RowIssues, Turn
from tarazu.chat.data.row_readers import RowLocation
from tarazu.chat.data.split import SPLITS, find_duplicates, split_by_hash
from tarazu.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

DUPLICATE = "duplicate of an earlier row"
IN_ANOTHER_SPLIT = "duplicate of a row in another split's source"
DEFAULT_FRACTIONS = {"train": 0.9, "validation": 0.05, "test": 0.05}

Source = str | Path | Sequence[str] | Mapping[str, str]


class ChatDataset:
    """Tokenized rows by split and index, the same for every method. Threads may read it together.

    Args:
        folder: the folder of `row_file.write`.
        template: the template that encoded the rows.
        meta: the content of meta.json, with the names that `summary` reports.
    """

    def __init__(self, folder: Path, template: Template, meta: dict[str, Any]):
        import pyarrow

        self.template, self.meta = template, meta
        self._file = pyarrow.memory_map(str(folder / "rows.arrow"))
        reader = pyarrow.ipc.open_file(self._file)
        self._batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        # Only the columns of single numbers are held in memory.
        self._columns = {
            name: np.concatenate([batch.column(name).to_numpy() for batch in self._batches])
            for name in ("key", "group", *statistics.COLUMNS)
        }
        self.issues = RowIssues.from_list(meta["problems"])
        self.index: dict[str, np.ndarray] = {}  # for each split, its rows in the file
        self.duplicates = 0

    def size(self, split: str) -> int:
        """Number of rows of a split."""
        return len(self.index[split])

    def row(self, split: str, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Token ids (T,) int32 and the loss mask (T,) bool of a row."""
        batch, position = self._locate(self.index[split][i])
        ids: np.ndarray = batch.column("ids")[position].values.to_numpy()
        supervised = batch.column("supervised")[position].values.to_numpy(zero_copy_only=False)
        return ids, supervised

    def lengths(self, split: str) -> np.ndarray:
        """Tokens of every row of a split (rows,)."""
        return self.column(split, "tokens")

    def column(self, split: str, name: str) -> np.ndarray:
        """One of `statistics.COLUMNS` for every row of a split (rows,)."""
        return self._columns[name][self.index[split]]

    def answer_bytes(self, split: str, i: int) -> int:
        """UTF-8 bytes of the answers under the loss, as far as `max_length` keeps them."""
        return int(self._columns["answer_bytes"][self.index[split][i]])

    def conversation(self, split: str, i: int) -> list[Turn]:
        """The complete conversation, with what `max_length` cuts off the tokens."""
        turns = self._text(self.index[split][i], "turns")
        return [Turn(role, text, train_on) for role, text, train_on in turns]

    def location(self, split: str, i: int) -> RowLocation:
        """The line or row number in the source; "file:line" if there are several files."""
        location: RowLocation = self._text(self.index[split][i], "location")
        return location

    def summary(self, num_examples: int = 5) -> dict[str, Any]:
        """The content of `data.json`, see docs/run_folder.md."""
        rows = np.concatenate([self.index[split] for split in SPLITS])
        columns = {name: self._columns[name][rows] for name in statistics.COLUMNS}
        splits = {
            split: {
                "rows": self.size(split),
                "tokens": int(self.lengths(split).sum()),
                "supervised": int(self.column(split, "answer_tokens").sum()),
            }
            for split in SPLITS
        }
        return {
            "source": self.meta["source"],
            "sha256": self.meta["sha256"],
            "note": self.meta["note"],
            "tokenizer": self.meta["tokenizer"],
            "template": {"name": self.template.name, "reason": self.template.reason},
            "max_length": self.meta["max_length"],
            "splits": splits,
            "structure": statistics.describe(columns, self.duplicates),
            "problems": self.issues.as_list(),
            "examples": self._examples(num_examples),
        }

    def assign_splits(
        self, fractions: Mapping[str, float] | None, seed: int, keep_duplicates: bool
    ) -> ChatDataset:
        """Fill `index`.

        Args:
            fractions: fraction of each split; None: each row belongs to its source's split.
            seed: of `split_by_hash`.
            keep_duplicates: keep rows that repeat an earlier one of the same source.

        Raises:
            UserError: a split gets no row.
        """
        keys, groups = self._columns["key"], self._columns["group"]
        within, across = find_duplicates(keys, groups)
        self.duplicates = int((within | across).sum())
        # A test row in another split's source is always dropped, or the test would be invalid.
        self._count_dropped(IN_ANOTHER_SPLIT, across)
        dropped = across
        if not keep_duplicates:
            self._count_dropped(DUPLICATE, within)
            dropped = across | within
        kept = np.flatnonzero(~dropped)
        if fractions is None:
            self.index = {name: kept[groups[kept] == SPLITS.index(name)] for name in SPLITS}
        else:
            positions = split_by_hash(keys[kept], fractions, seed)
            self.index = {name: kept[positions[name]] for name in positions}
        for name, index in self.index.items():
            if not len(index):
                raise UserError(
                    f"no row for the {name} split ({len(kept)} usable rows in all)",
                    location=self.meta["source"],
                    hint="give more rows or other fractions: data.split",
                )
        return self

    def _examples(self, count: int) -> list[dict[str, Any]]:
        """Rows evenly spaced over the training split, the shortest first and with its tokens."""
        size = self.size("train")
        positions = {round(position) for position in np.linspace(0, size - 1, min(count, size))}
        chosen = sorted(positions, key=lambda i: self.lengths("train")[i])
        examples: list[dict[str, Any]] = []
        for i in chosen:
            turns = self.conversation("train", i)
            shown = [{"role": turn.role, "text": turn.text} for turn in turns]
            examples.append({"line": self.location("train", i), "turns": shown})
        if examples:
            examples[0]["tokens"] = self._token_texts("train", chosen[0])
        return examples

    def _token_texts(self, split: str, i: int) -> list[list[Any]]:
        """[text, 1 under the loss or 0] of every token of a row."""
        ids, supervised = self.row(split, i)
        texts = token_texts(self.template.tokenizer, ids.tolist())
        return [[text, int(flag)] for text, flag in zip(texts, supervised, strict=True)]

    def _locate(self, row: int) -> tuple[Any, int]:
        """The record batch that holds a row of the file, and the position in it."""
        batch, position = divmod(int(row), self._batches[0].num_rows)
        return self._batches[batch], position

    def _text(self, row: int, column: str) -> Any:
        """The value of a JSON column."""
        batch, position = self._locate(row)
        return json.loads(batch.column(column)[position].as_py())

    def _count_dropped(self, reason: str, dropped: np.ndarray) -> None:
        """Count the rows of a mask (rows,), with the locations of the first."""
        rows = np.flatnonzero(dropped)
        for row in rows[: self.issues.max_locations]:
            self.issues.add("dropped", reason, self._text(row, "location"))
        if len(rows):
            self.issues.counts["dropped", reason] = len(rows)


def prepare(
    source: Source,
    tokenizer: PreTrainedTokenizerFast,
    template: Template,
    *,
    max_length: int,
    cache: Path,
    split: Mapping[str, float] | None = None,
    seed: int = 0,
    rows: int | None = None,
    duplicates: str = "drop",
    note: str | dict[str, str] | None = None,
) -> ChatDataset:
    """Tokenize the rows of a source, or take them from the cache, and split them.

    Args:
        source: a hub name, file or folder; a list of them; or {"train": ..., "validation": ...,
            "test": ...}.
        tokenizer: the model's tokenizer.
        template: made by `select_template(tokenizer)`.
        max_length: maximum tokens of a row.
        cache: the folder of row files.
        split: fraction of each split; not used with three sources.
        seed: of the split.
        rows: read only so many usable rows, of each source if there are three.
        duplicates: "drop" rows that repeat an earlier one, or "keep" them in the same split.
        note: a remark for the report.

    Raises:
        UserError: a source cannot be read or has no usable row; the error lists the reasons.
    """
    by_split = isinstance(source, Mapping)
    if isinstance(source, Mapping):
        # Test rows come first: of duplicates, the first one is kept.
        source_of = {name: source[name] for name in ("test", "validation", "train")}
    else:
        source_of = {"all": source}
    groups: dict[str, list[str | Path]] = {
        name: [given] if isinstance(given, str | Path) else list(given)
        for name, given in source_of.items()
    }
    hashes = row_file.content_hashes(groups)
    folder = Path(cache) / row_file.folder_name(hashes, template, max_length, rows)
    meta = row_file.read_meta(folder)
    if meta is None:
        meta = row_file.write(folder, groups, template, max_length, rows)
    all_hashes = [value for group in hashes.values() for value in group]
    meta |= {
        "source": ", ".join(str(given) for group in groups.values() for given in group),
        "sha256": all_hashes[0] if len(all_hashes) == 1 else row_file.json_hash(hashes),
        "note": note,
        "tokenizer": str(tokenizer.name_or_path),
        "max_length": max_length,
    }
    fractions = None if by_split else dict(split or DEFAULT_FRACTIONS)
    dataset = ChatDataset(folder, template, meta)
    return dataset.assign_splits(fractions, seed, keep_duplicates=duplicates == "keep")


def token_texts(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[str]:
    """The text of each token. A part of a character is shown by its name, such as <0xD8>."""
    texts = [tokenizer.decode([i], clean_up_tokenization_spaces=False) for i in ids]
    names = tokenizer.convert_ids_to_tokens(ids)
    return [name if "\ufffd" in text else text for name, text in zip(names, texts, strict=True)]
