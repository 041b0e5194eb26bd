"""Apply a function to many images in parallel, in the worker processes of a PyTorch DataLoader.

Decoding a small JPEG is half Python code, so threads would wait for the interpreter lock. Processes
need a few tenths of a second to start, so a short list is mapped in the calling process.
"""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from tarazu.errors import TarazuError

MIN_ITEMS = 500  # a shorter list does not pay for the start of processes
MIN_CORES = 4  # with fewer cores the encoder keeps them all busy
MAX_WORKERS = 12  # a dozen decode faster than a GPU encodes


def parallel_map(
    function: Callable[[Any], Any],
    items: Sequence[Any],
    chunk_size: int = 8,
    collate: Callable[[list], Any] = list,
    pin_memory: bool = False,
) -> Iterator[Any]:
    """Map a function over items, chunk by chunk.

    Args:
        function: called with one item, perhaps in a forked process: what it changes there is lost.
        items: its arguments, of any type.
        chunk_size: items of one message between processes.
        collate: makes one value of a chunk's results, in the worker. A tensor comes back in shared
            memory, anything else through a pipe.
        pin_memory: copy tensors to pinned memory, for asynchronous transfers to a GPU.

    Yields:
        `collate([function(item), ...])` of every `chunk_size` items, in order.

    Raises:
        TarazuError: `function` raised it, or a worker process was killed.
    """
    num_workers = _num_workers(len(items))
    chunks = [items[start : start + chunk_size] for start in range(0, len(items), chunk_size)]
    loader = DataLoader(
        _Chunks(function, chunks, collate),
        batch_size=None,  # a chunk of the data set is a batch already
        collate_fn=_unchanged,
        num_workers=num_workers,
        multiprocessing_context="fork" if num_workers else None,
        pin_memory=pin_memory,
        worker_init_fn=_ignore_interrupts,
        generator=torch.Generator(),  # else the loader would draw from torch's global generator
    )
    with warnings.catch_warnings():
        # Python warns of forks beside running threads. The children use no library's threads.
        warnings.simplefilter("ignore", DeprecationWarning)
        results = iter(loader)
    try:
        for result in results:
            if isinstance(result, TarazuError):
                raise result
            yield result
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker (pid"):
            raise
        raise TarazuError(
            "a worker process that reads images was killed",
            hint="memory may be short: end other programs and run again",
        ) from error


class _Chunks(Dataset):
    """The results of a chunk of items at an index.

    A `TarazuError` is returned, not raised: DataLoader would raise it again without its fields.
    """

    def __init__(
        self,
        function: Callable[[Any], Any],
        chunks: list[Sequence[Any]],
        collate: Callable[[list], Any],
    ):
        self.function, self.chunks, self.collate = function, chunks, collate

    def __len__(self) -> int:
        return len(self.chunks)

    def __getitem__(self, index: int) -> Any:
        try:
            return self.collate([self.function(item) for item in self.chunks[index]])
        except TarazuError as error:
            return error


def _num_workers(count: int) -> int:
    """Worker processes for so many items; 0: work in the calling process."""
    if sys.platform != "linux" or count < MIN_ITEMS or _cores() < MIN_CORES:
        return 0
    return min(_cores(), MAX_WORKERS)


def _cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _unchanged(result: Any) -> Any:
    return result


def _ignore_interrupts(worker: int) -> None:
    """Leave Ctrl+C to the parent process, which ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
