"""What a person sees while it runs: a bar on a terminal, a line now and then elsewhere; always on stderr."""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

CONSOLE = Console(stderr=True, soft_wrap=True, highlight=False)
QUIET_SECONDS = 10.0  # between lines where there is no terminal


def log(text: str) -> None:
    """One line, above the bar if there is one."""
    CONSOLE.print(text, markup=False)


class ProgressBar:
    """Progress of one piece of work, 0..1. Use as a context manager."""

    def __init__(self, title: str):
        self.title, self._last, self._begin = title, 0.0, time.monotonic()
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
        self._begin = time.monotonic()
        if self._live:
            self._progress.start()
            self._task = self._progress.add_task(self.title, total=1.0, text="")
        return self

    def __exit__(self, *_) -> None:
        if self._live:
            self._progress.stop()
        sys.stderr.flush()

    def at(self, fraction: float, text: str) -> None:
        """Moves the bar, or prints a line when the last one is some seconds old."""
        if self._live:
            self._progress.update(self._task, completed=fraction, text=text)
        elif time.monotonic() - self._last >= QUIET_SECONDS or fraction >= 1:
            self._last = time.monotonic()
            log(f"{self.title}: {100 * fraction:3.0f}%  {text}")
