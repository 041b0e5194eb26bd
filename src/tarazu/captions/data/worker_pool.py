"""The same work on many pictures: by forked processes where there is much of it and cores enough, else by threads.

Decoding a small picture is half Python, so threads wait for one another at the interpreter's lock: 650 pictures a second
from 16 threads on 16 cores, where one alone does 900. The processes are forked once, at the first work, and stay: forking
is cheap as long as no GPU is in use, and costs a tenth of a second each from then on. Work goes to them pickled, once; large
results come back through memory that all share (`Shared`).
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import mmap
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import time
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np

from tarazu.errors import TarazuError

MANY = 500  # pictures from which on processes are worth their start
CORES = 4  # below this they would gain nothing
MOST = 12  # a dozen decode faster than a GPU looks
DIE_WITH_PARENT = 1  # prctl's PR_SET_PDEATHSIG
NAME = "tarazu-shared-"  # of the files of `Shared`
SETTLED = 60  # seconds after which whoever made such a file holds it locked, if it still lives

spent: Counter[str] = Counter()  # seconds by what they went to, for benchmarks
_pool: ProcessPoolExecutor | None = None
_owner = 0  # the process that forked it
_loaded: tuple[str, Callable[[Any], Any] | None] = (
    "",
    None,
)  # in a forked process: what it does, and the file it came from


def ready(count: int) -> bool:
    """Whether so many items are work for processes, which are there then. Ask it before `Shared` memory is made: processes
    that are forked later have that memory for as long as they live."""
    if sys.platform != "linux" or count < MANY or cores() < CORES:
        return False
    _gathered()
    return True


@contextlib.contextmanager
def crew(work: Callable[[Any], Any], count: int) -> Iterator[Callable[[Sequence], Future]]:
    """Yields `submit(items)`, the future of [work(item) for item in items]. `count`: how many items there will be.

    `work` must be picklable; what it writes is lost in a process, but for `Shared` arrays; it may raise a `TarazuError`,
    which comes back. Raises one itself when a process is killed.
    """
    if not ready(count):
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            yield lambda items: threads.submit(lambda: [work(item) for item in items])
        return
    pool = _gathered()
    with tempfile.TemporaryDirectory(
        prefix="tarazu-"
    ) as folder:  # that only this user can open: what is unpickled is our own
        file = Path(folder, "work")
        file.write_bytes(pickle.dumps(work))
        waiting: list[Future] = []

        def submit(items: Sequence) -> Future:
            waiting.append(pool.submit(_do, str(file), list(items)))
            return waiting[-1]

        try:
            yield submit
        except BrokenProcessPool as error:
            dismiss()
            raise TarazuError(
                "a process that decodes pictures was killed",
                hint="memory may be short: end other programs and run again",
            ) from error
        finally:
            for job in waiting:  # none begins after the file is gone
                job.cancel()
            with contextlib.suppress(RuntimeError):  # broken, or the program ends
                for _ in range(_size()):
                    pool.submit(_put_down)


class Shared:
    """An array in memory that processes share, however long ago they were forked: pickled, it is only its place."""

    def __init__(self, shape: tuple[int, ...], dtype: str):
        self.shape, self.dtype, size = (
            shape,
            dtype,
            max(1, int(np.prod(shape)) * np.dtype(dtype).itemsize),
        )
        _sweep()
        file, self.place = tempfile.mkstemp(prefix=NAME, dir=_folder_for(size))
        weakref.finalize(self, _forget, self.place, os.getpid())
        with open(file, "r+b") as opened:
            fcntl.flock(
                opened, fcntl.LOCK_EX
            )  # for as long as the memory is open here: see `_sweep`
            opened.truncate(size)
            self._attach(opened.fileno())

    def __getstate__(self) -> dict:
        return {"shape": self.shape, "dtype": self.dtype, "place": self.place}

    def __setstate__(self, state: dict) -> None:
        self.__dict__ |= state
        with open(self.place, "r+b") as opened:
            self._attach(opened.fileno())

    def _attach(self, file: int) -> None:
        values = np.frombuffer(mmap.mmap(file, 0), self.dtype, int(np.prod(self.shape)))
        self.array = values.reshape(self.shape)


def _sweep() -> None:
    """Removes the memory of processes that were killed, which nobody holds locked."""
    for folder in ("/dev/shm", tempfile.gettempdir()):
        for path in Path(folder).glob(f"{NAME}*"):
            with contextlib.suppress(OSError):  # it is held, another user's, or gone
                if time.time() - path.stat().st_mtime > SETTLED:
                    with open(path, "r+b") as file:
                        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        path.unlink()


def _folder_for(size: int) -> str:
    """Memory that has a name, where there is enough of it (64 MB in many containers); else files."""
    with contextlib.suppress(OSError):
        free = os.statvfs("/dev/shm")
        if free.f_bavail * free.f_frsize > 2 * size and os.access("/dev/shm", os.W_OK):
            return "/dev/shm"
    return tempfile.gettempdir()


def _forget(place: str, owner: int) -> None:
    if os.getpid() == owner:  # whoever has the memory open keeps it
        with contextlib.suppress(OSError):
            os.unlink(place)


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def dismiss() -> None:
    """Ends the processes; the next work forks new ones."""
    global _pool
    if _pool is not None and _owner == os.getpid():
        _pool.shutdown(wait=False, cancel_futures=True)
    _pool = None


@contextlib.contextmanager
def counted(what: str) -> Iterator[None]:
    """Adds the seconds within to `spent`."""
    began = time.perf_counter()
    try:
        yield
    finally:
        spent[what] += time.perf_counter() - began


def _gathered() -> ProcessPoolExecutor:
    """The processes, forked now if they are not there yet, or no longer."""
    global _pool, _owner
    if _pool is not None and _owner == os.getpid():
        with contextlib.suppress(
            BrokenProcessPool
        ):  # the thread that forked them has ended, or one was killed
            _pool.submit(int).result()
            return _pool
    with counted("forking"), warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", DeprecationWarning
        )  # "multi-threaded": the children use no library's threads
        _pool = ProcessPoolExecutor(
            _size(), multiprocessing.get_context("fork"), _begin, (os.getpid(),)
        )
        _owner = os.getpid()
        _pool.submit(int).result()  # all are forked at the first job
    return _pool


def _size() -> int:
    return min(cores(), MOST)


def _begin(parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)
    if os.getppid() != parent:  # it died before it could be told
        os._exit(1)


def _put_down() -> None:
    """Shared memory is free again when no process has it open; the short sleep leaves the other jobs to the others."""
    global _loaded
    _loaded = ("", None)
    time.sleep(0.01)


def _do(file: str, items: list) -> list:
    global _loaded
    if _loaded[0] != file:
        _loaded = (file, pickle.loads(Path(file).read_bytes()))
    return [_loaded[1](item) for item in items]
