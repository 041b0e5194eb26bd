"""The errors that a user can do something about: what happened, where, and what to do."""


class TarazuError(Exception):
    """A named failure of the work itself (exit code 1).

    Args:
        what: what happened, in one sentence.
        where: the file, line, key or row that it happened at.
        todo: what the reader can do about it.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", todo: str = ""):
        self.what, self.where, self.todo = what, where, todo
        super().__init__(str(self))

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        advice = f"\n  what to do: {self.todo}" if self.todo else ""
        return f"{place}{self.what}{advice}"


class UserError(TarazuError):
    """The recipe, the data, a file or an option cannot be used as given (exit code 2)."""

    exit_code = 2


class Stopped(TarazuError):
    """A signal ended the run at the edge of a step, after a checkpoint (exit code 128 + signal)."""

    def __init__(self, signal_number: int, folder: str):
        super().__init__("stopped and saved", where=folder, todo=f"tarazu resume {folder}")
        self.exit_code = 128 + signal_number
