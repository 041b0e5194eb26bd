"""The user's cache folder, and locks between processes."""

from __future__ import annotations

import os
from pathlib import Path

from filelock import FileLock
from platformdirs import user_cache_path


def cache_dir() -> Path:
    """The folder of everything that tarazu can make again.

    `TARAZU_CACHE`, or else the user's cache folder (on Linux `$XDG_CACHE_HOME/tarazu`, by default
    `~/.cache/tarazu`).
    """
    return Path(os.environ.get("TARAZU_CACHE") or user_cache_path("tarazu"))


def lock_in(folder: Path, timeout: float = -1) -> FileLock:
    """A lock between processes on a folder; the folder is created.

    Use it as a context manager. A process that was forked while the lock was held does not keep it.

    Args:
        folder: what the lock protects; it gets a file `.lock`, which stays.
        timeout: seconds to wait for another process; below 0: until it is done.

    Returns:
        The lock. Entering it raises `filelock.Timeout` when the time is over.
    """
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / ".lock", timeout=timeout)
