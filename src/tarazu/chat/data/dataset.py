"""Rows understood, tokenised and measured once, kept in an Arrow file that is mapped, not loaded, and split exactly.

The file's name is a hash of everything that decides its content: source bytes, tokenizer, template, `max_length`, and
the version of the normalisation. The split is not in it: it is the rank of a seeded hash of what the conversation says
(`split.py`), so another seed costs nothing. Memory: about 100 bytes a row, whatever its length.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tarazu.chat.data import sources as raw
from tarazu.chat.data import statistics
from tarazu.chat.data.chat_template import Template
from tarazu.chat.data.conversation import Conversation, RowDropped, RowIssues, Turn, parse_row
from tarazu.chat.data.persian import NORMALIZATION_VERSION
from tarazu.chat.data.split import SPLITS, find_duplicates, split_by_hash
from tarazu.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CUT = "cut at max_length"
NOTHING_LEFT = "no answer left after cutting at max_length"
DUPLICATE = "duplicate of an earlier row"
IN_ANOTHER_SPLIT = "duplicate of a row in another split's source"
_STORE_VERSION = 2  # part of the cache key: raise it when the Arrow columns or `understand` change
# The key of a row decides its split. It hashes SlimOrca's role names, so that every study keeps its splits.
_HASHED_ROLES = {"system": "system", "user": "human", "assistant": "gpt"}
_BATCH = 512  # rows tokenised and written at a time

Source = str | Path | Sequence[str] | Mapping[str, str]


class ChatDataset:
    """Prepared rows: addressed by split and index, the same for every method. Safe to read from several threads."""

    def __init__(self, folder: Path, template: Template, meta: dict):
        import pyarrow

        self.template, self.meta = template, meta
        self._file = pyarrow.memory_map(str(folder / "rows.arrow"))
        reader = pyarrow.ipc.open_file(self._file)
        self._batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        self._columns = {name: self._gather(name) for name in ("key", "group", *statistics.COLUMNS)}
        self.issues = RowIssues.from_list(meta["problems"])
        self.index: dict[str, np.ndarray] = {}
        self.duplicates = 0

    def size(self, split: str) -> int:
        return len(self.index[split])

    def row(self, split: str, i: int) -> tuple[np.ndarray, np.ndarray]:
        """`ids` (T,) int32 and `supervised` (T,) bool."""
        batch, at = self._at(split, i)
        ids = batch.column("ids")[at].values.to_numpy()
        return ids, batch.column("supervised")[at].values.to_numpy(zero_copy_only=False)

    def lengths(self, split: str) -> np.ndarray:
        """Tokens of every row of the split (rows,)."""
        return self.column(split, "tokens")

    def column(self, split: str, name: str) -> np.ndarray:
        """One of `structure.COLUMNS` for every row of the split (rows,)."""
        return self._columns[name][self.index[split]]

    def answer_bytes(self, split: str, i: int) -> int:
        """UTF-8 bytes of the answers under the loss, as far as `max_length` left them."""
        return int(self._columns["answer_bytes"][self.index[split][i]])

    def conversation(self, split: str, i: int) -> list[Turn]:
        """The whole conversation, also what `max_length` cut off the tokens."""
        batch, at = self._at(split, i)
        return [
            Turn(role, text, train_on)
            for role, text, train_on in json.loads(batch.column("turns")[at].as_py())
        ]

    def location(self, split: str, i: int) -> raw.RowLocation:
        """Line (or row) number in the source; "file:line" where there are several files."""
        batch, at = self._at(split, i)
        return json.loads(batch.column("location")[at].as_py())

    def summary(self, examples: int = 5) -> dict:
        """What docs/run_folder.md calls data.json (chat)."""
        kept = np.concatenate([self.index[split] for split in SPLITS])
        return {
            "source": self.meta["source"], "sha256": self.meta["sha256"], "note": self.meta["note"],
            "tokenizer": self.meta["tokenizer"],
            "template": {"name": self.template.name, "reason": self.template.reason},
            "max_length": self.meta["max_length"],
            "splits": {
                split: {
                    "rows": self.size(split), "tokens": int(self.lengths(split).sum()),
                    "supervised": int(self.column(split, "answer_tokens").sum()),
                } for split in SPLITS
            },
            "structure": statistics.describe({n: self._columns[n][kept] for n in statistics.COLUMNS}, self.duplicates),
            "problems": self.issues.as_list(),
            "examples": self.examples(examples),
        }  # fmt: skip

    def examples(self, count: int = 5) -> list[dict]:
        """Rows from all over the training split, the shortest first and with its tokens."""
        size = self.size("train")
        chosen = sorted(
            {round(at) for at in np.linspace(0, size - 1, min(count, size))},
            key=lambda i: self.lengths("train")[i],
        )
        shown = []
        for i in chosen:
            turns = [
                {"role": turn.role, "text": turn.text} for turn in self.conversation("train", i)
            ]
            shown.append({"line": self.location("train", i), "turns": turns})
        if shown:
            shown[0]["tokens"] = self.tokens("train", chosen[0])
        return shown

    def tokens(self, split: str, i: int) -> list[list]:
        """[text, 1 under the loss or 0] of every token of a row, for people to look at."""
        ids, supervised = self.row(split, i)
        texts = token_texts(self.template.tokenizer, ids.tolist())
        return [[text, int(flag)] for text, flag in zip(texts, supervised, strict=True)]

    def _at(self, split: str, i: int) -> tuple[Any, int]:
        at = int(self.index[split][i])
        return self._batches[at // _BATCH], at % _BATCH

    def _gather(self, name: str) -> np.ndarray:
        return np.concatenate([batch.column(name).to_numpy() for batch in self._batches])

    def split(
        self, shares: Mapping[str, float] | None, seed: int, keep_duplicates: bool
    ) -> ChatDataset:
        """Sets `index`: by source if there are three (no shares), else by rank; see `split.py`."""
        keys, groups = self._columns["key"], self._columns["group"]
        within, elsewhere = find_duplicates(keys, groups)
        self.duplicates = int((within | elsewhere).sum())
        self._note(IN_ANOTHER_SPLIT, elsewhere)  # these always go, or the test is void
        if not keep_duplicates:
            self._note(DUPLICATE, within)
        kept = np.flatnonzero(~elsewhere if keep_duplicates else ~(within | elsewhere))
        if shares is None:
            self.index = {name: kept[groups[kept] == SPLITS.index(name)] for name in SPLITS}
        else:
            self.index = {
                name: kept[chosen]
                for name, chosen in split_by_hash(keys[kept], shares, seed).items()
            }
        for name, index in self.index.items():
            if not len(index):
                what = f"no row for the {name} split ({len(kept)} usable rows in all)"
                raise UserError(
                    what,
                    location=self.meta["source"],
                    hint="give more rows or other shares: data.split",
                )
        return self

    def _note(self, reason: str, dropped: np.ndarray) -> None:
        """Counts the dropped rows of a mask (rows,), with the places of the first."""
        rows = np.flatnonzero(dropped)
        for n in rows[: self.issues.max_locations].tolist():
            place = self._batches[n // _BATCH].column("location")[n % _BATCH].as_py()
            self.issues.add("dropped", reason, json.loads(place))
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
    tell: Callable[[int], None] = lambda done: None,
) -> ChatDataset:
    """The rows of a source, tokenised (or taken from the cache) and split.

    Args:
        source: a hub name, file or folder; a list of them; or {"train": ..., "validation": ..., "test": ...}.
        template: as `template.choose(tokenizer)` made it.
        split: the share of each split (default 0.9/0.05/0.05); not used with three sources.
        rows: read at most so many usable rows (of each source, where there are three), from the start.
        duplicates: "drop" rows that repeat an earlier one, or "keep" them (in the same split).
        tell: called with the number of rows written so far.
    Raises: `UserError` for a source that cannot be read or has no usable row, with the reasons.
    """
    three = isinstance(source, Mapping)
    groups = (
        {"all": source}
        if not three
        else {name: source[name] for name in ("test", "validation", "train")}
    )
    lists = {name: [s] if isinstance(s, str | Path) else list(s) for name, s in groups.items()}
    content = {name: [raw.fingerprint(s) for s in sources] for name, sources in lists.items()}
    described = template.describe()
    tokenizer_hash = hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()
    key = _hash(
        [
            content,
            tokenizer_hash,
            described,
            max_length,
            rows,
            NORMALIZATION_VERSION,
            _STORE_VERSION,
        ]
    )
    folder = Path(cache) / f"rows-{key[:20]}"
    meta = _cached(folder) or _write(folder, lists, template, max_length, rows, tell)
    names = [str(s) for sources in lists.values() for s in sources]
    only = [h for hashes in content.values() for h in hashes]
    meta |= {"source": ", ".join(names), "sha256": only[0] if len(only) == 1 else _hash(content), "note": note,
             "tokenizer": str(tokenizer.name_or_path), "max_length": max_length}  # fmt: skip
    default = {"train": 0.9, "validation": 0.05, "test": 0.05}
    return ChatDataset(folder, template, meta).split(
        None if three else dict(split or default), seed, duplicates == "keep"
    )


def token_texts(tokenizer, ids: list[int]) -> list[str]:
    """What each token adds to the text; a part of a character is shown by its name in the vocabulary (<0xD8>)."""
    texts = [tokenizer.decode([i], clean_up_tokenization_spaces=False) for i in ids]
    names = tokenizer.convert_ids_to_tokens(ids)
    return [name if "\ufffd" in text else text for name, text in zip(names, texts, strict=True)]


def _cached(folder: Path) -> dict | None:
    """The record of a finished file, or None if there is none or its size is not what was written."""
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        return meta if (folder / "rows.arrow").stat().st_size == meta["bytes"] else None
    except (OSError, ValueError, KeyError):
        return None


def _write(
    folder: Path,
    lists: dict[str, list],
    template: Template,
    max_length: int,
    limit: int | None,
    tell,
) -> dict:
    """Writes rows.arrow and meta.json aside and renames them into place."""
    aside = folder.with_name(f"{folder.name}.{os.getpid()}.part")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        problems, done = RowIssues(), 0
        streams = (
            _usable(name, sources, template, limit, problems) for name, sources in lists.items()
        )
        with _Writer(aside / "rows.arrow") as writer:
            stream = _encoded(chain.from_iterable(streams), template, max_length, problems)
            while batch := list(islice(stream, _BATCH)):
                writer.write(batch)
                done += len(batch)
                tell(done)
        if not done:
            raise _nothing_usable(lists, problems)
        meta = {
            "rows": done,
            "bytes": (aside / "rows.arrow").stat().st_size,
            "problems": problems.as_list(),
        }
        (aside / "meta.json").write_text(json.dumps(meta, ensure_ascii=False), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)  # a damaged one
        os.replace(aside, folder)
        return meta
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _usable(
    group: str, sources: list, template: Template, limit: int | None, problems: RowIssues
) -> Iterator[tuple]:
    """(group, place, conversation) of every row that can be understood, at most `limit`; the rest is counted."""

    def conversations() -> Iterator[tuple]:
        for source in sources:
            for place, row in raw.iter_rows(source):
                place = place if len(sources) == 1 else f"{Path(source).name}:{place}"
                try:
                    if isinstance(row, raw.UnreadableRow):
                        raise RowDropped(row.reason)
                    conversation, repairs = parse_row(row, template.markers)
                except RowDropped as drop:
                    problems.add("dropped", drop.reason, place)
                    continue
                for repair in sorted(repairs):
                    problems.add("repaired", repair, place)
                yield (SPLITS.index(group) if group in SPLITS else 0), place, conversation

    return islice(conversations(), limit)


def _encoded(
    rows: Iterator[tuple], template: Template, max_length: int, problems: RowIssues
) -> Iterator[dict]:
    """Arrow rows, tokenised `_BATCH` at a time."""
    while batch := list(islice(rows, _BATCH)):
        encoded = template.encode_batch([conversation for _, _, conversation in batch], max_length)
        for (group, place, conversation), e in zip(batch, encoded, strict=True):
            if not e.supervised.any():
                problems.add("dropped", NOTHING_LEFT, place)
                continue
            if e.num_truncated:
                problems.add("repaired", CUT, place)
            turns = [[turn.role, turn.text, turn.train_on] for turn in conversation.turns]
            yield {
                "ids": e.ids,
                "supervised": e.supervised,
                "turns": json.dumps(turns, ensure_ascii=False),
                "location": json.dumps(place),
                "key": _key(conversation),
                "group": group,
                **statistics.row_statistics(conversation, e),
            }


class _Writer:
    """An Arrow file of equal batches."""

    def __init__(self, path: Path):
        import pyarrow as pa

        kinds = {"ids": pa.list_(pa.int32()), "supervised": pa.list_(pa.bool_()),
                 "turns": pa.string(), "location": pa.string(),
                 "key": pa.uint64(), "group": pa.int8(), **dict.fromkeys(statistics.COLUMNS, pa.int32())}  # fmt: skip
        self.schema = pa.schema(list(kinds.items()))
        self._writer = pa.ipc.new_file(str(path), self.schema)

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()

    def write(self, rows: list[dict]) -> None:
        import pyarrow as pa

        columns = {name: [row[name] for row in rows] for name in self.schema.names}
        self._writer.write_batch(pa.RecordBatch.from_pydict(columns, schema=self.schema))


def _nothing_usable(lists: dict[str, list], problems: RowIssues) -> UserError:
    names = ", ".join(str(s) for sources in lists.values() for s in sources)
    reasons = "".join(
        f"\n  {p['count']} x {p['reason']} (line {', '.join(map(str, p['lines'][:5]))})"
        for p in problems.as_list() if p["kind"] == "dropped"
    )  # fmt: skip
    why = f"every row was dropped{reasons}" if reasons else "there is no row in it"
    todo = "rows need `conversations`, `messages`, or `instruction` and `output`"
    return UserError(f"no usable row: {why}", location=names, hint=todo)


def _key(conversation: Conversation) -> int:
    """64 bits of what the conversation says; two of a million differing rows share one with probability 3e-8."""
    hashed = [[_HASHED_ROLES[turn.role], turn.text] for turn in conversation.turns]
    text = json.dumps(hashed, ensure_ascii=False)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _hash(value: Any) -> str:
    return hashlib.sha256(
        json.dumps(value, sort_keys=True, ensure_ascii=False).encode()
    ).hexdigest()
