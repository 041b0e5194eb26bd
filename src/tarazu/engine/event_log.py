"""The event log of a run: JSON lines that a resumed run cuts back to its checkpoint and continues."""

from __future__ import annotations

import json
import os
from pathlib import Path

from tarazu.storage.atomic_io import replace_nonfinite


class EventLog:
    """Appends to `events.jsonl`."""

    def __init__(self, path: Path, size: int = 0):
        """Opens the log cut back to `size` bytes: what was written after the checkpoint will happen again."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "ab")
        self._file.truncate(min(size, os.path.getsize(path)))

    def write(self, event: str, **fields) -> None:
        line = (
            json.dumps(
                replace_nonfinite({"event": event, **fields}), ensure_ascii=False, allow_nan=False
            )
            + "\n"
        )
        self._file.write(line.encode("utf-8", "replace"))
        self._file.flush()

    def size(self) -> int:
        """Bytes so far, all of them on disk."""
        os.fsync(self._file.fileno())
        return os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        self._file.close()
