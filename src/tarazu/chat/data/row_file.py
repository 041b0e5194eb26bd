"""Write tokenized rows to an Arrow file, once for each content.

    <cache>/rows-<hash>/rows.arrow    one record for each row, in batches of `BATCH_ROWS`
    <cache>/rows-<hash>/meta.json     number of rows, size of the file, repaired and dropped rows

The hash covers everything that decides the content: the sources' bytes, the tokenizer, the
template, `max_length` and the versions of the code below. The split is not part of it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

from tarazu.chat.data import sources, statistics
from tarazu.chat.data.chat_template import Template
from tarazu.chat.data.conversation import Conversation, RowDropped, RowIssues, parse_row
from tarazu.chat.data.persian import NORMALIZATION_VERSION
from tarazu.chat.data.split import SPLITS
from tarazu.errors import UserError

TRUNCATED = "cut at max_length"
NOTHING_LEFT = "no answer left after cutting at max_length"
BATCH_ROWS = 512  # rows tokenized and written at a time
VERSION = 2  # part of the hash: raise it when the columns or `parse_row` change

# The key of a row decides its split. It hashes SlimOrca's role names, which were the roles' names
# when the first studies were made, so that they keep their splits.
_HASHED_ROLES = {"system": "system", "user": "human", "assistant": "gpt"}

Sources = Mapping[str, list[str | Path]]  # the sources of each group of rows
Meta = dict[str, Any]


class _ParsedRow(NamedTuple):
    """A row that is not tokenized yet."""

    group: int  # position in SPLITS of the split whose source it is from, or 0
    location: sources.RowLocation
    conversation: Conversation


def content_hashes(groups: Sources) -> dict[str, list[str]]:
    """The fingerprint of every source, by group."""
    return {
        name: [sources.fingerprint(source) for source in group] for name, group in groups.items()
    }


def folder_name(
    hashes: Mapping[str, list[str]], template: Template, max_length: int, rows: int | None
) -> str:
    """The name of the folder, from a hash of everything that decides its content."""
    tokenizer = template.tokenizer.backend_tokenizer.to_str()
    parts = [
        hashes,
        hashlib.sha256(tokenizer.encode()).hexdigest(),
        template.describe(),
        max_length,
        rows,
        NORMALIZATION_VERSION,
        VERSION,
    ]
    return f"rows-{json_hash(parts)[:20]}"


def read_meta(folder: Path) -> Meta | None:
    """meta.json; None if there is no finished file, or its size is not what was written."""
    try:
        meta: Meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        return meta if (folder / "rows.arrow").stat().st_size == meta["bytes"] else None
    except (OSError, ValueError, KeyError):
        return None


def write(
    folder: Path, groups: Sources, template: Template, max_length: int, limit: int | None
) -> Meta:
    """Read, tokenize and write the rows of all groups.

    Both files are written to a temporary folder, which is then renamed. So a folder with the final
    name is always complete.

    Args:
        folder: the folder to write.
        groups: the sources of each group.
        template: encodes the rows.
        max_length: maximum tokens of a row.
        limit: usable rows read of each group; None reads all.

    Returns:
        The content of meta.json.

    Raises:
        UserError: a source cannot be read, or no row is usable.
    """
    temporary = folder.with_name(f"{folder.name}.{os.getpid()}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        issues = RowIssues()
        parsed = chain.from_iterable(
            islice(_parse_rows(name, group, template, issues), limit)
            for name, group in groups.items()
        )
        records = _encode_rows(parsed, template, max_length, issues)
        num_rows = _write_arrow(temporary / "rows.arrow", records)
        if not num_rows:
            raise _no_usable_row(groups, issues)
        size = (temporary / "rows.arrow").stat().st_size
        meta = {"rows": num_rows, "bytes": size, "problems": issues.as_list()}
        text = json.dumps(meta, ensure_ascii=False)
        (temporary / "meta.json").write_text(text, encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)  # a damaged one, see `read_meta`
        os.replace(temporary, folder)
        return meta
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def json_hash(value: Any) -> str:
    """SHA-256 of a value's JSON."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _parse_rows(
    name: str, group: list[str | Path], template: Template, issues: RowIssues
) -> Iterator[_ParsedRow]:
    """The usable rows of a group. Repaired and dropped ones are counted in `issues`."""
    number = SPLITS.index(name) if name in SPLITS else 0
    for source in group:
        for location, row in sources.iter_rows(source):
            if len(group) > 1:
                location = f"{Path(source).name}:{location}"
            try:
                if isinstance(row, sources.UnreadableRow):
                    raise RowDropped(row.reason)
                conversation, repairs = parse_row(row, template.markers)
            except RowDropped as dropped:
                issues.add("dropped", dropped.reason, location)
                continue
            for repair in sorted(repairs):
                issues.add("repaired", repair, location)
            yield _ParsedRow(number, location, conversation)


def _encode_rows(
    rows: Iterator[_ParsedRow], template: Template, max_length: int, issues: RowIssues
) -> Iterator[dict[str, Any]]:
    """Arrow records of the rows, tokenized `BATCH_ROWS` at a time."""
    while batch := list(islice(rows, BATCH_ROWS)):
        encoded_rows = template.encode_batch([row.conversation for row in batch], max_length)
        for row, encoded in zip(batch, encoded_rows, strict=True):
            if not encoded.supervised.any():
                issues.add("dropped", NOTHING_LEFT, row.location)
                continue
            if encoded.num_truncated:
                issues.add("repaired", TRUNCATED, row.location)
            turns = [[turn.role, turn.text, turn.train_on] for turn in row.conversation.turns]
            yield {
                "ids": encoded.ids,
                "supervised": encoded.supervised,
                "turns": json.dumps(turns, ensure_ascii=False),
                "location": json.dumps(row.location),
                "key": _key(row.conversation),
                "group": row.group,
                **statistics.row_statistics(row.conversation, encoded),
            }


def _write_arrow(path: Path, records: Iterable[dict[str, Any]]) -> int:
    """Write an Arrow file in batches of `BATCH_ROWS` and return the number of rows."""
    import pyarrow

    schema = pyarrow.schema(
        {
            "ids": pyarrow.list_(pyarrow.int32()),
            "supervised": pyarrow.list_(pyarrow.bool_()),
            "turns": pyarrow.string(),
            "location": pyarrow.string(),
            "key": pyarrow.uint64(),
            "group": pyarrow.int8(),
            **dict.fromkeys(statistics.COLUMNS, pyarrow.int32()),
        }
    )
    records, num_rows = iter(records), 0
    with pyarrow.ipc.new_file(str(path), schema) as writer:
        while batch := list(islice(records, BATCH_ROWS)):
            columns = {name: [record[name] for record in batch] for name in schema.names}
            writer.write_batch(pyarrow.RecordBatch.from_pydict(columns, schema=schema))
            num_rows += len(batch)
    return num_rows


def _no_usable_row(groups: Sources, issues: RowIssues) -> UserError:
    reasons = [
        f"\n  {issue['count']} x {issue['reason']} (line {', '.join(map(str, issue['lines'][:5]))})"
        for issue in issues.as_list()
        if issue["kind"] == "dropped"
    ]
    reason = f"every row was dropped{''.join(reasons)}" if reasons else "there is no row in it"
    return UserError(
        f"no usable row: {reason}",
        location=", ".join(str(source) for group in groups.values() for source in group),
        hint="rows need `conversations`, `messages`, or `instruction` and `output`",
    )


def _key(conversation: Conversation) -> int:
    """A 64-bit hash of the turns. Among a million rows two collide with probability 3e-8."""
    turns = [[_HASHED_ROLES[turn.role], turn.text] for turn in conversation.turns]
    text = json.dumps(turns, ensure_ascii=False)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
