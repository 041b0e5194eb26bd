"""SIGINT and SIGTERM: while training they wait for the edge of a step, elsewhere they end the work at once."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

from tarazu.errors import Stopped


class StopSignals:
    """Turns SIGINT and SIGTERM into `Stopped`. A second signal does not wait. Use as a context manager."""

    def __init__(self, folder: str):
        self.folder, self.received, self._patient = folder, None, False

    def __enter__(self) -> StopSignals:
        self._old = {}
        if threading.current_thread() is threading.main_thread():
            self._old = {
                number: signal.signal(number, self._on)
                for number in (signal.SIGINT, signal.SIGTERM)
            }
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def patient(self) -> Iterator[None]:
        """Inside, a signal is only noted, until `check`."""
        self._patient = True
        try:
            yield
        finally:
            self._patient = False

    def check(self) -> None:
        """Raises `Stopped` if a signal came."""
        if self.received is not None:
            raise Stopped(self.received, self.folder)

    def _on(self, number: int, _frame) -> None:
        again, self.received = self.received is not None, number
        if again or not self._patient:
            self.check()
