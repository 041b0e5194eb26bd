"""Read the rows of one file, format by format: JSON lines, JSON, CSV, TSV and Parquet.

Each reader yields (location, row) and holds a few rows in memory, whatever the size of the file. A
row that cannot be read becomes an `UnreadableRow` with the reason, and reading goes on where that
is possible.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from tarazu.chat.data.conversation import LISTS, MALFORMED, NOT_TEXT
from tarazu.errors import UserError

EXTENSIONS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
MAX_ROW_BYTES = 32 * 2**20  # a longer line is no chat row, and would fill the memory
PARQUET_BATCH_ROWS = 256

TOO_LONG = "row longer than 32 MiB"
TRUNCATED_FILE = "file ends early or is damaged"
WRONG_CELLS = "wrong number of cells"
MALFORMED_CSV = "malformed CSV"

_GZIP_ERRORS = (EOFError, gzip.BadGzipFile, zlib.error)  # a gzip file that is cut off or damaged


@dataclass(frozen=True)
class UnreadableRow:
    """A row that could not be read, with the reason that it is counted under."""

    reason: str


# The line or row number, from 1; "file:line" where a folder holds several files.
RowLocation = int | str
Rows = Iterator[tuple[RowLocation, Any]]  # (location, parsed row or UnreadableRow)


def extension(path: Path) -> str:
    """The extension of `EXTENSIONS` that the name has, without .gz; "" if it has none."""
    name = path.name.lower().removesuffix(".gz")
    return next((ending for ending in EXTENSIONS if name.endswith(ending)), "")


def read_file(path: Path) -> Rows:
    """Yield the rows of a file.

    Raises:
        UserError: the file is of no known format, is empty or cannot be read.
    """
    kind = extension(path)
    if not kind:
        raise UserError(
            "the format of this file is not known",
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
        if kind == ".parquet":
            yield from _read_parquet(path)
            return
        with _open(path) as file:
            if kind == ".json":
                yield from _read_json(file)
            elif kind in (".csv", ".tsv"):
                yield from _read_csv(file, "\t" if kind == ".tsv" else ",")
            else:
                yield from _read_lines(file)
    except OSError as error:
        raise UserError(
            f"the file cannot be read: {error.strerror or error}", location=str(path)
        ) from None


def _open(path: Path) -> BinaryIO:
    if path.name.lower().endswith(".gz"):
        return cast(BinaryIO, gzip.open(path, "rb"))
    return path.open("rb")


def _read_lines(file: BinaryIO) -> Rows:
    """JSON lines. Empty lines are skipped."""
    number = 0
    while True:
        number += 1
        try:
            line = file.readline(MAX_ROW_BYTES + 1)
            fits = len(line) <= MAX_ROW_BYTES
            while len(line) > MAX_ROW_BYTES and not line.endswith(b"\n"):  # skip its rest
                line = file.readline(MAX_ROW_BYTES + 1)
        except _GZIP_ERRORS:
            yield number, UnreadableRow(TRUNCATED_FILE)
            return
        if not line:
            return
        if not fits:
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


def _read_json(file: BinaryIO) -> Rows:
    """An array of rows, an object that holds one, a single row, or JSON lines misnamed."""
    import ijson

    # A first line that is a complete object means JSON lines, or one object on a single line.
    first_line = file.readline(MAX_ROW_BYTES)
    file.seek(0)
    if first_line.lstrip(b"\xef\xbb\xbf \t").startswith(b"{"):
        first = _parse(first_line)
        if not isinstance(first, UnreadableRow):
            rows = _rows_in_object(first)
            yield from _read_lines(file) if rows is None else enumerate(rows, 1)
            return

    # Otherwise the file is parsed as a stream, so that memory does not grow with it.
    number = 0
    try:
        prefix = _array_prefix(file)
        file.seek(0)
        for row in ijson.items(file, prefix, use_float=True):
            number += 1
            yield number, row
    except UnicodeDecodeError:
        yield number + 1, UnreadableRow(NOT_TEXT)
    except ijson.JSONError:  # where the next row would start is unknown
        yield number + 1, UnreadableRow(MALFORMED)
    except _GZIP_ERRORS:
        yield number + 1, UnreadableRow(TRUNCATED_FILE)


def _rows_in_object(value: dict[str, Any]) -> list[dict[str, Any]] | None:
    """The rows in an object such as {"data": [{...}, ...]}; None if the object is itself a row."""
    if any(key in value for key in LISTS):
        return None
    for key, rows in value.items():
        if isinstance(rows, list) and key != "history":
            return rows if all(isinstance(row, dict) for row in rows) else None
    return None


def _array_prefix(file: BinaryIO) -> str:
    """ijson's prefix of rows: "item" in an array, "KEY.item" in an object, "" for one row."""
    import ijson

    events = ijson.parse(file)
    _, event, _ = next(events)
    if event == "start_array":
        return "item"
    for prefix, event, _ in events:
        if event == "start_array" and "." not in prefix:
            return "" if prefix in LISTS else f"{prefix}.item"
    return ""


def _read_csv(file: BinaryIO, delimiter: str) -> Rows:
    """CSV with a header. A row's location is the line that it begins on."""
    csv.field_size_limit(MAX_ROW_BYTES)
    # Bytes that are not UTF-8 become lone surrogates, so that only their row is lost.
    text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
    reader = csv.DictReader(text, delimiter=delimiter)
    line = 1
    while True:
        try:
            row = next(reader, None)
            if row is None:
                return
            yield line + 1, _checked_cells(row)
        except csv.Error:
            yield line + 1, UnreadableRow(MALFORMED_CSV)
        except _GZIP_ERRORS:
            yield line + 1, UnreadableRow(TRUNCATED_FILE)
            return
        line = reader.line_num


def _checked_cells(row: dict[str | Any, str | Any]) -> Any:
    """The row, or why it cannot be used."""
    cells = [cell for cell in row.values() if isinstance(cell, str)]
    if any("\udc80" <= character <= "\udcff" for cell in cells for character in cell):
        return UnreadableRow(NOT_TEXT)
    if None in row or len(cells) < len(row):  # more or fewer cells than the header
        return UnreadableRow(WRONG_CELLS)
    return row


def _read_parquet(path: Path) -> Rows:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path, memory_map=True) as file:
            number = 0
            for batch in file.iter_batches(batch_size=PARQUET_BATCH_ROWS):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except pyarrow.ArrowException as error:
        raise UserError(
            f"not a readable Parquet file: {str(error).splitlines()[0]}", location=str(path)
        ) from None
