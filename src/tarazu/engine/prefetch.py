"""Batches of the next step, prepared in a thread while the device works on the current one."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from tarazu.engine.trainable import Batch

Collate = Callable[[int, int], list[Batch]]


class BatchPrefetcher:
    """Prepare the batches of each step one step ahead.

    Args:
        collate: makes the batches of a step: (step, maximum tokens in a batch) -> batches.
    """

    def __init__(self, collate: Collate):
        self._collate = collate
        self._thread = ThreadPoolExecutor(1)
        self._prefetched: tuple[tuple[int, int], Future[list[Batch]]] | None = None

    def batches(self, step: int, limit: int) -> list[Batch]:
        """The batches of `step`; starts to prepare those of the next step.

        Args:
            step: number of the step, from 0.
            limit: maximum tokens in a batch. If it changed since the last call, the prefetched
                batches are discarded.
        """
        if self._prefetched and self._prefetched[0] == (step, limit):
            current = self._prefetched[1]
        else:
            current = self._thread.submit(self._collate, step, limit)
        following = (step + 1, limit)
        self._prefetched = (following, self._thread.submit(self._collate, *following))
        return current.result()

    def close(self) -> None:
        """Wait for the thread and end it."""
        self._thread.shutdown(wait=True, cancel_futures=True)
