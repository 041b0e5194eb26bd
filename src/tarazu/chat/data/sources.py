"""Raw rows of a source, one after another, each with its place; memory does not grow with the file.

A source is a local .jsonl, .json, .csv, .tsv or .parquet file (all but Parquet also as .gz), a folder of them, a file
that ships with tarazu (`samples:NAME`), or a name on the Hugging Face hub, read as a stream: `owner/name`,
`owner/name:split`, `owner/name@revision:split`.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import tarazu
from tarazu.chat.data.conversation import LISTS, MALFORMED, NOT_TEXT
from tarazu.errors import UserError
from tarazu.storage.hub_status import hub_is_reachable

EXTENSIONS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
MAX_ROW_BYTES = 32 * 2**20  # bytes; a longer line is not a chat row, and would fill the memory
TOO_LONG = "row longer than 32 MiB"
TRUNCATED_FILE = "file ends early or is damaged"
LOCAL_FILE = "give a local .jsonl, .json, .csv or .parquet file: --set data.source=PATH"

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?(:[\w.\[\]%:-]+)?")


@dataclass(frozen=True)
class UnreadableRow:
    """A row that could not be read, with the reason it is counted under."""

    reason: str


RowLocation = (
    int | str
)  # the line or row number, from 1; "file:line" where a folder holds several files
Rows = Iterator[tuple[RowLocation, Any]]  # (place, parsed row | Problem)


def iter_rows(source: str | Path) -> Rows:
    """Rows of a source in their order. Raises `UserError` if there is none of that name, or nothing in it."""
    path = local_path(source)
    if path.is_dir():
        files = _files(path)
        for file in files:
            for place, row in _read_file(file):
                yield (place if len(files) == 1 else f"{file.relative_to(path)}:{place}"), row
    elif path.exists() or _ending(path) or not _HUB_NAME.fullmatch(str(source)):
        yield from _read_file(path)
    else:
        yield from _read_hub(str(source))


def local_path(source: str | Path) -> Path:
    """The path that a source names, whether or not something is there; `samples:NAME` is a file of this package."""
    text = str(source)
    if text.startswith("samples:"):
        return Path(tarazu.__file__).parent / "samples" / text.removeprefix("samples:")
    return Path(text).expanduser()


def fingerprint(source: str | Path) -> str:
    """sha256 of a local source's bytes (of all names and bytes for a folder); for a hub name, of its commit."""
    path = local_path(source)
    if path.is_dir():
        digest = hashlib.sha256()
        for file in _files(path):
            digest.update(f"{file.relative_to(path)}\0{_sha256(file)}\n".encode())
        return digest.hexdigest()
    if path.is_file():
        return _sha256(path)
    if _ending(path) or not _HUB_NAME.fullmatch(str(source)):
        raise _missing(path)
    return hashlib.sha256(f"{source}\0{_hub_commit(str(source))}".encode()).hexdigest()


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"the file cannot be read: {error.strerror}", location=str(path)) from None


def _ending(path: Path) -> str:
    name = path.name.lower().removesuffix(".gz")
    return next((ending for ending in EXTENSIONS if name.endswith(ending)), "")


def _files(folder: Path) -> list[Path]:
    files = sorted(
        p for p in folder.rglob("*") if p.is_file() and _ending(p) and not p.name.startswith(".")
    )
    if not files:
        raise UserError(
            "no data file in this folder",
            location=str(folder),
            hint=f"put files there that end in {', '.join(EXTENSIONS)}",
        )
    return files


def _missing(path: Path) -> UserError:
    return UserError(
        "no such file or folder",
        location=str(path),
        hint="give a file, a folder, or a hub name (owner/name)",
    )


def _read_file(path: Path) -> Rows:
    ending = _ending(path)
    if not path.exists():
        raise _missing(path)
    if not ending:
        raise UserError(
            "this kind of file is not known",
            location=str(path),
            hint=f"use one of {', '.join(EXTENSIONS)} (.gz too)",
        )
    if path.stat().st_size == 0:
        raise UserError(
            "the file is empty",
            location=str(path),
            hint="check that it was saved or downloaded completely",
        )
    try:
        if ending == ".parquet":
            yield from _read_parquet(path)
            return
        with _open(path) as file:
            reader = {".json": _read_json, ".csv": _read_csv, ".tsv": _read_csv}.get(
                ending, _read_lines
            )
            yield from reader(file, path)
    except OSError as error:
        raise UserError(
            f"the file cannot be read: {error.strerror or error}", location=str(path)
        ) from None


def _open(path: Path) -> BinaryIO:
    return gzip.open(path, "rb") if path.name.lower().endswith(".gz") else path.open("rb")


def _read_lines(file: BinaryIO, path: Path) -> Rows:
    number = 0
    while True:
        number += 1
        try:
            line = file.readline(MAX_ROW_BYTES + 1)
            whole = len(line) <= MAX_ROW_BYTES
            while len(line) > MAX_ROW_BYTES and not line.endswith(b"\n"):
                line = file.readline(MAX_ROW_BYTES + 1)
        except (EOFError, gzip.BadGzipFile, gzip.zlib.error):  # a gzip that was cut off or changed
            yield number, UnreadableRow(TRUNCATED_FILE)
            return
        if not line:
            return
        if not whole:
            yield number, UnreadableRow(TOO_LONG)
        elif line.strip():
            yield number, _parse(line)


def _parse(line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return UnreadableRow(NOT_TEXT)
    except (ValueError, RecursionError):
        return UnreadableRow(MALFORMED)


def _read_json(file: BinaryIO, path: Path) -> Rows:
    """An array of rows, an object that holds one, a single row, or (as many such files are) JSON lines."""
    import ijson

    first = file.readline(MAX_ROW_BYTES)
    lines = first.lstrip(b"\xef\xbb\xbf \t").startswith(b"{") and not isinstance(
        _parse(first), UnreadableRow
    )
    file.seek(0)
    if lines:
        yield from _read_lines_or_object(file, path, _parse(first))
        return
    number = 0
    try:
        prefix = _array_prefix(file)
        file.seek(0)
        for row in ijson.items(file, prefix, use_float=True):
            number += 1
            yield number, row
    except UnicodeDecodeError:
        yield number + 1, UnreadableRow(NOT_TEXT)
    except ijson.JSONError:  # there is no telling where the next row would start
        yield number + 1, UnreadableRow(MALFORMED)
    except (EOFError, gzip.BadGzipFile, gzip.zlib.error):
        yield number + 1, UnreadableRow(TRUNCATED_FILE)


def _read_lines_or_object(file: BinaryIO, path: Path, first: Any) -> Rows:
    rows = next(
        (v for k, v in first.items() if isinstance(v, list) and k not in LISTS and k != "history"),
        None,
    )
    if (
        rows is not None
        and not any(key in first for key in LISTS)
        and all(isinstance(row, dict) for row in rows)
    ):
        yield from enumerate(rows, 1)  # {"data": [...]} on a single line, already parsed
    else:
        yield from _read_lines(file, path)


def _array_prefix(file: BinaryIO) -> str:
    """Where the rows are: "item" in an array; "KEY.item" for the first list of an object; "" for a single row."""
    import ijson

    events = ijson.parse(file)
    _, event, _ = next(events)
    if event == "start_array":
        return "item"
    for prefix, event, _ in events:
        if event == "start_array" and "." not in prefix:
            return "" if prefix in LISTS else f"{prefix}.item"
    return ""


def _read_csv(file: BinaryIO, path: Path) -> Rows:
    csv.field_size_limit(MAX_ROW_BYTES)
    text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
    reader = csv.DictReader(text, delimiter="\t" if _ending(path) == ".tsv" else ",")
    line = 1
    while True:
        try:
            row = next(reader, None)
            if row is None:
                return
            values = [v for v in row.values() if isinstance(v, str)]
            broken = any("\udc80" <= c <= "\udcff" for v in values for c in v)
            odd = None in row or len(values) < len(row)  # more or fewer cells than the header
            yield (
                line + 1,
                UnreadableRow(NOT_TEXT)
                if broken
                else UnreadableRow("wrong number of cells")
                if odd
                else row,
            )
        except csv.Error:
            yield line + 1, UnreadableRow("malformed CSV")
        except (EOFError, gzip.BadGzipFile, gzip.zlib.error):
            yield line + 1, UnreadableRow(TRUNCATED_FILE)
            return
        line = reader.line_num


def _read_parquet(path: Path) -> Rows:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path, memory_map=True) as file:
            number = 0
            for batch in file.iter_batches(batch_size=256):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except pyarrow.ArrowException as error:
        raise UserError(
            f"not a readable Parquet file: {str(error).splitlines()[0]}", location=str(path)
        ) from None


def _hub_parts(source: str) -> tuple[str, str | None, str]:
    name, _, split = source.partition(":")
    name, _, revision = name.partition("@")
    return name, revision or None, split or "train"


def _hub_commit(source: str) -> str:
    from huggingface_hub import HfApi

    name, revision, _ = _hub_parts(source)
    if not hub_is_reachable():
        raise UserError(
            "no such file here, and the Hugging Face hub does not answer (no network, or HF_HUB_OFFLINE is set)",
            location=source,
            hint=LOCAL_FILE,
        )
    try:
        return HfApi().dataset_info(name, revision=revision, timeout=20).sha or ""
    except Exception as error:
        raise _hub_trouble(source, error) from None


def _read_hub(source: str) -> Rows:
    _hub_commit(source)  # fails at once, and in plain words, where there is no network
    from datasets import load_dataset

    name, revision, split = _hub_parts(source)
    try:
        yield from enumerate(load_dataset(name, split=split, revision=revision, streaming=True), 1)
    except UserError:
        raise
    except Exception as error:
        raise _hub_trouble(source, error) from None


def _hub_trouble(source: str, error: Exception) -> UserError:
    """The hub's many exceptions in three kinds: not allowed, not there, not reachable."""
    kind, name = type(error).__name__, _hub_parts(source)[0]
    status = getattr(getattr(error, "response", None), "status_code", None)
    if kind == "GatedRepoError" or status == 403:
        page = f"https://huggingface.co/datasets/{name}"
        return UserError(
            "this data set is gated",
            location=source,
            hint=f"accept its terms on {page}, then `hf auth login`",
        )
    if status in (401, 404) or kind in (
        "RepositoryNotFoundError",
        "DatasetNotFoundError",
        "RevisionNotFoundError",
    ):
        return UserError("neither a file here nor a data set on the Hugging Face hub", location=source,
                        hint="check the name; for a private or gated one, `hf auth login` first")  # fmt: skip
    if isinstance(error, ValueError):
        return UserError(
            f"the data set cannot be read as asked: {str(error).splitlines()[0]}", location=source
        )
    return UserError(f"no such file here, and the Hugging Face hub could not be reached ({kind})", location=source,
                    hint=LOCAL_FILE)  # fmt: skip
