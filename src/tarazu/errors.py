"""The errors that a user can do something about: what happened, where, and what to do."""


class TarazuError(Exception):
    """A named failure of the work itself (exit code 1).

    Args:
        message: what happened, in one sentence.
        location: the file, line, key or row that it happened at.
        hint: what the reader can do about it.
    """

    exit_code = 1

    def __init__(self, message: str, *, location: str = "", hint: str = ""):
        self.message, self.location, self.hint = message, location, hint
        super().__init__(str(self))

    def __str__(self) -> str:
        place = f"{self.location}: " if self.location else ""
        advice = f"\n  what to do: {self.hint}" if self.hint else ""
        return f"{place}{self.message}{advice}"


class UserError(TarazuError):
    """The recipe, the data, a file or an option cannot be used as given (exit code 2)."""

    exit_code = 2


class Stopped(TarazuError):
    """A signal ended the run at the edge of a step, after a checkpoint (exit code 128 + signal)."""

    def __init__(self, signal_number: int, folder: str):
        super().__init__("stopped and saved", location=folder, hint=f"tarazu resume {folder}")
        self.exit_code = 128 + signal_number
