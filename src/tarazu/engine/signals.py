"""SIGINT and SIGTERM: training ends after its current step, other work ends at once."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from tarazu.errors import Stopped


class StopSignals:
    """Turn SIGINT and SIGTERM into `Stopped`. Use as a context manager.

    Args:
        folder: path of the study, which `Stopped` names so that the user can resume it.
    """

    def __init__(self, folder: str):
        self.folder = folder
        self.received: int | None = None  # number of the last signal
        self._deferred = False

    def __enter__(self) -> StopSignals:
        self._previous_handlers = {}
        # Python allows signal handlers in the main thread only.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous_handlers[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside, a first signal waits until `check`. A second signal ends the work at once."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def check(self) -> None:
        """End the work if a signal came.

        Raises:
            Stopped: a signal was received.
        """
        if self.received is not None:
            raise Stopped(self.received, self.folder)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        is_second, self.received = self.received is not None, number
        if is_second or not self._deferred:
            self.check()
