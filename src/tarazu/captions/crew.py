"""The same work on many pictures: by forked processes where there is much of it and cores enough, else by threads.

Decoding a small picture is half Python, so threads wait for one another at the interpreter's lock: 650 pictures a second
from 16 threads on 16 cores, where one alone does 900. A forked process has all that its parent had, so nothing but names
goes to it; large results come back through memory that both share (`shared`).
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import multiprocessing
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

import numpy as np

MANY = 500  # pictures from which on processes are worth their start
CORES = 4  # below this they would gain nothing
MOST = 12  # a process with a GPU in use takes a tenth of a second to fork, and a dozen decode faster than a GPU looks
DIE_WITH_PARENT = 1  # prctl's PR_SET_PDEATHSIG

_work: Callable[[Any], Any] | None = None  # in a forked process: what it does


@contextlib.contextmanager
def crew(work: Callable[[Any], Any], count: int) -> Iterator[Callable[[Sequence], Future]]:
    """Yields `submit(items)`, the future of [work(item) for item in items]. `count`: how many items there will be.

    What `work` writes is lost in a process, but for `shared` arrays; it may raise a `TarazuError`, which comes back.
    """
    with _executor(work, count) as pool:
        if isinstance(pool, ProcessPoolExecutor):
            yield lambda items: pool.submit(_do, list(items))
        else:
            yield lambda items: pool.submit(lambda: [work(item) for item in items])


def shared(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """An array that processes forked from now on share with this one."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer(mmap.mmap(-1, max(1, size)), dtype, int(np.prod(shape))).reshape(shape)


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _executor(work: Callable[[Any], Any], count: int) -> Executor:
    if sys.platform != "linux" or count < MANY or cores() < CORES:
        return ThreadPoolExecutor(os.cpu_count())
    pool = ProcessPoolExecutor(min(cores(), MOST), multiprocessing.get_context("fork"), _begin, (work,))
    with warnings.catch_warnings():  # "this process is multi-threaded": the children only decode, and use no library's threads
        warnings.simplefilter("ignore", DeprecationWarning)
        pool.submit(int)  # all are forked at the first job
    return pool


def _begin(work: Callable[[Any], Any]) -> None:
    global _work
    _work = work
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)


def _do(items: list) -> list:
    return [_work(item) for item in items]
