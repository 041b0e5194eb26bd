"""Reading and writing files of a run folder: JSON, JSON lines, and atomic replacement."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tarazu.errors import TarazuError, UserError


def write_atomic(path: Path, data: bytes) -> None:
    """Replace a file so that a reader sees the old or the new content, even after a power cut.

    Args:
        path: the file; missing parent folders are created.
        data: its whole content.

    Raises:
        TarazuError: the file system refuses, for example because the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temp_path = path.with_name(path.name + ".writing")
    try:
        # 1. Write a neighbour: a crash here leaves the old file as it is.
        with open(temp_path, "wb") as file:
            file.write(data)
            # 2. Flush its content to the disk. A rename that reached the disk before the content
            #    would leave an empty file after a power cut.
            file.flush()
            os.fsync(file.fileno())
        # 3. Rename it over the old file, which is one atomic step within a file system.
        os.replace(temp_path, path)
    except OSError as error:
        temp_path.unlink(missing_ok=True)
        raise TarazuError(
            f"cannot be written: {error.strerror}",
            location=str(path),
            hint="free some disk space, then `tarazu resume`",
        ) from error
    # 4. Flush the folder, which holds the new name.
    fsync_dir(path.parent)


def fsync_dir(folder: Path) -> None:
    """Flush a folder to the disk, so that renames in it survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON. NaN and infinity become null.

    Raises:
        TarazuError: the file cannot be written.
    """
    text = json.dumps(replace_nonfinite(value), ensure_ascii=False, indent=1, allow_nan=False)
    write_atomic(path, text.encode("utf-8", "replace"))


def write_jsonl(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write one JSON object a line. NaN and infinity become null.

    Raises:
        TarazuError: the file cannot be written.
    """
    lines = (
        json.dumps(replace_nonfinite(row), ensure_ascii=False, allow_nan=False) + "\n"
        for row in rows
    )
    write_atomic(path, "".join(lines).encode("utf-8", "replace"))


def replace_nonfinite(value: Any) -> Any:
    """The value with every NaN and infinity replaced by None, as JSON has neither."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): replace_nonfinite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [replace_nonfinite(item) for item in value]
    return value


def read_json(path: Path, default: Any = None) -> Any:
    """The JSON object in a file.

    Args:
        path: the file.
        default: returned where there is no file, or where it holds null.

    Raises:
        UserError: the file is damaged.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return default
    except (OSError, ValueError, RecursionError) as error:
        raise corrupt_file_error(path, f"not readable as JSON: {error}") from None
    if value is None:
        return default
    if not isinstance(value, dict):
        kind = type(value).__name__
        raise corrupt_file_error(path, f"holds a {kind} where an object is expected")
    return value


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The JSON objects in a file, one a line; empty where there is no file.

    A last line that a crash cut short is left out, as is any other line that is no object.

    Raises:
        UserError: the file is not text.
    """
    if not path.exists():
        return []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as error:
        raise corrupt_file_error(path, f"not readable as text: {error}") from None
    rows = []
    for line in lines:
        with contextlib.suppress(ValueError, RecursionError):
            rows.append(json.loads(line))
    return [row for row in rows if isinstance(row, dict)]


def corrupt_file_error(path: Path, message: str) -> UserError:
    """The error for a damaged file of a run folder, with a hint on how to restore it."""
    if path.parent.name.startswith("seed-"):
        removed, effect = path.parent, "trains this run"
    else:
        removed, effect = path, "writes it"
    hint = f"restore it from a copy, or remove {removed}: `tarazu resume` then {effect} again"
    return UserError(message, location=str(path), hint=hint)


@contextlib.contextmanager
def reporting_corruption(*paths: Path) -> Iterator[None]:
    """Report an error inside the block as damage of the files whose content the block uses.

    Raises:
        UserError: the block raised one of the errors that unexpected content causes.
    """
    try:
        yield
    except (KeyError, IndexError, TypeError, AttributeError, ValueError, OverflowError) as error:
        existing = [path for path in paths if path.exists()] or list(paths)
        names = "" if len(existing) == 1 else f" ({', '.join(path.name for path in existing)})"
        message = f"does not hold what tarazu writes there{names}: {type(error).__name__} {error}"
        raise corrupt_file_error(existing[0], message) from error
