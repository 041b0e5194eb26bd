"""Progress on stderr: a bar on a terminal, otherwise a line every few seconds."""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

CONSOLE = Console(stderr=True, soft_wrap=True, highlight=False)
SECONDS_BETWEEN_LINES = 10.0  # where there is no terminal


def log(text: str) -> None:
    """Print one line, above the bar if there is one."""
    CONSOLE.print(text, markup=False)


class ProgressBar:
    """Progress of one piece of work. Use as a context manager.

    Args:
        title: what is in progress.
    """

    def __init__(self, title: str):
        self.title = title
        self._last_line = 0.0  # when the last line was printed
        self._live = CONSOLE.is_terminal
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:3.0f}%"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}"),
            console=CONSOLE,
        )

    def __enter__(self) -> ProgressBar:
        if self._live:
            self._progress.start()
            self._task = self._progress.add_task(self.title, total=1.0, text="")
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._progress.stop()
        sys.stderr.flush()

    def at(self, fraction: float, text: str) -> None:
        """Show how far the work is.

        Args:
            fraction: part of the work that is done, 0 to 1.
            text: short status, for example the current loss.
        """
        if self._live:
            self._progress.update(self._task, completed=fraction, text=text)
            return
        is_late = time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES
        if is_late or fraction >= 1:
            self._last_line = time.monotonic()
            log(f"{self.title}: {100 * fraction:3.0f}%  {text}")
