"""The event log of a run, `events.jsonl`, which a resumed run cuts back to its checkpoint."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from tarazu.storage.atomic_io import replace_nonfinite


class EventLog:
    """Append events to a file of JSON lines.

    Args:
        path: the file; its folder is created.
        size: size of the file in bytes at the checkpoint. Everything after it is cut off, because
            the resumed run writes these events again.
    """

    def __init__(self, path: Path, size: int = 0):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "ab")
        self._file.truncate(min(size, os.path.getsize(path)))

    def write(self, event: str, **fields: Any) -> None:
        """Append one event with its fields. Infinite numbers and NaN are written as null."""
        record = replace_nonfinite({"event": event, **fields})
        line = json.dumps(record, ensure_ascii=False, allow_nan=False)
        self._file.write(f"{line}\n".encode("utf-8", "replace"))
        self._file.flush()

    def size(self) -> int:
        """Flush everything to disk and return the size of the file in bytes."""
        os.fsync(self._file.fileno())
        return os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        """Close the file."""
        self._file.close()
