"""Errors that a user can act on. Each says what happened, where, and what to do."""

from __future__ import annotations

import errno

FREE_SPACE = "free some space on that disk; `tarazu resume DIR` continues a study"
# By the number of a system error: what the user can do about it.
SYSTEM_HINTS = {
    errno.EACCES: "give a path that you may read and write",
    errno.EPERM: "give a path that you may read and write",
    errno.EROFS: "give a path that can be written",
    errno.ENOSPC: FREE_SPACE,
    errno.EDQUOT: FREE_SPACE,
    errno.EFBIG: "give a path for larger files; `tarazu resume DIR` continues a study",
    errno.ENOENT: "check the path: a folder in it does not exist",
    errno.ENOTDIR: "check the path: a part of it is not a folder",
    errno.EISDIR: "give a file: this is a folder",
    errno.ENAMETOOLONG: "give a shorter name",
}


class TarazuError(Exception):
    """A failure of the work itself, such as a diverged training (exit code 1).

    Args:
        message: what happened, in one sentence.
        location: the file, line, key or row at which it happened.
        hint: what the user can do about it.
    """

    exit_code = 1

    def __init__(self, message: str, *, location: str = "", hint: str = "") -> None:
        self.message, self.location, self.hint = message, location, hint
        super().__init__(str(self))

    def __str__(self) -> str:
        location = f"{self.location}: " if self.location else ""
        hint = f"\n  what to do: {self.hint}" if self.hint else ""
        return f"{location}{self.message}{hint}"


class UserError(TarazuError):
    """The recipe, the data, a file or an option cannot be used as given (exit code 2)."""

    exit_code = 2


class Stopped(TarazuError):
    """A signal stopped the run after a step, and a checkpoint was saved (exit code 128 + signal).

    Args:
        signal_number: the signal.
        folder: the study, which `tarazu resume` continues.
    """

    def __init__(self, signal_number: int, folder: str) -> None:
        super().__init__("stopped and saved", location=folder, hint=f"tarazu resume {folder}")
        self.exit_code = 128 + signal_number
