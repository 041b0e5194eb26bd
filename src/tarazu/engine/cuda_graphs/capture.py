"""How a CUDA graph is recorded: in a space of its own, with what would spoil it or go into it by mistake kept away."""

from __future__ import annotations

import contextlib
import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from tarazu.engine.cuda_graphs import memory

_abandoned: list[torch.cuda.CUDAGraph] = []
_spaces = 0  # that are in use on a GPU


class ReplayCounter:
    """The number of the pass whose intermediate tensors lie in the memory that recordings share."""

    def __init__(self):
        self.number = 0

    def next(self) -> int:
        self.number += 1
        return self.number


class GraphPool:
    """What the recordings of one piece of work share: a stream, memory, and a place for each parameter's gradient."""

    def __init__(self):
        gpu = torch.cuda.is_available()
        if gpu and hasattr(torch.autograd.graph, "set_warn_on_accumulate_grad_stream_mismatch"):
            torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)  # see `grad_buffer`
        self.stream = torch.cuda.Stream() if gpu else None
        self.pool = torch.cuda.MemPool() if gpu else None
        self.gradients: dict[int, Tensor] = {}
        self.nodes: dict[int, Any] = {}
        self.replay_counter = ReplayCounter()
        if gpu:
            global _spaces
            _spaces += 1
            weakref.finalize(self, _left, self.pool.id).atexit = False

    def grad_buffer(self, parameter: Tensor) -> Tensor:
        """Where its gradient comes. The end of its graph is made on this stream and kept: autograd hands gradients over on the
        stream where that node was made, and another stream must not wait for one that is being recorded."""
        if self.stream is not None and id(parameter) not in self.nodes:
            with torch.cuda.stream(self.stream), torch.enable_grad():
                self.nodes[id(parameter)] = parameter.view_as(parameter).grad_fn.next_functions[0][
                    0
                ]
        return self.gradients.setdefault(
            id(parameter), torch.empty_like(parameter, requires_grad=False)
        )

    def detach_gradients(self, parameters: list[Tensor]) -> None:
        """Gradients that have come so far leave their places, where a recording is about to be tried out."""
        for parameter in parameters:
            if parameter.grad is not None and parameter.grad is self.gradients.get(id(parameter)):
                parameter.grad = parameter.grad.clone()


def _left(pool: tuple[int, int]) -> None:
    """A space is gone. With the last one go the matrix library's workspaces (66 MiB for each space on an H100), which would keep the pools."""
    global _spaces
    _spaces -= 1
    memory.forget(pool)
    if not _spaces:  # else another's recordings still write there
        torch._C._cuda_clearCublasWorkspaces()


def warm_up(work: Callable[[], None], space: GraphPool) -> None:
    """Runs `work` aside once: libraries choose and allocate what they need, and code is compiled."""
    space.stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(space.stream), torch.cuda.use_mem_pool(space.pool):
        work()
    torch.cuda.current_stream().wait_stream(space.stream)
    torch.cuda.synchronize()


def capture(work: Callable[[], tuple], space: GraphPool) -> tuple[Callable[[], None], tuple]:
    """Records `work`; returns what plays it back, and the tensors that are filled then."""
    graph, stream, holders = (
        torch.cuda.CUDAGraph(),
        torch.cuda.current_stream(),
        space.pool.use_count(),
    )
    try:
        with torch.cuda.graph(
            graph, pool=space.pool.id, stream=space.stream, capture_error_mode="thread_local"
        ):
            found = work()
    except BaseException:
        release_failed_capture(graph, space.pool, holders)
        raise
    finally:
        torch.cuda.set_stream(stream)  # torch itself stays on the recording's where one failed
    return graph.replay, found


def release_failed_capture(
    graph: torch.cuda.CUDAGraph, pool: torch.cuda.MemPool, holders: int
) -> None:
    """Strikes a recording that failed out of the allocator's books, where torch forgets it: up to 2.12 it counts as going on, and
    the next pool that is given back, anyone's, ends the process (pytorch#180395); up to 2.13 it holds its pool for ever (#190348).

    Args:
        holders: how many held the pool before.
    """
    _abandoned.append(
        graph
    )  # of some bytes, once it is reset; the books of the host's memory go on asking it
    graph.reset()
    with contextlib.suppress(RuntimeError):  # it does not count as going on
        torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), pool.id)
    for _ in range(pool.use_count() - holders):
        torch._C._cuda_releasePool(torch.cuda.current_device(), pool.id)


@contextlib.contextmanager
def gc_paused(first: bool) -> Iterator[None]:
    """An older recording that Python throws away while one is made would spoil it. Before the `first`, older graphs that keep the
    parameters' ends on their stream must go; later it would only take half a second each time."""
    if first:
        gc.collect()
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def settle() -> None:
    """After a recording that failed: torch's dice still believe that they are being recorded until one has ended well."""
    if torch.cuda.is_available():
        with contextlib.suppress(RuntimeError):
            capture(lambda: (torch.zeros(1, device="cuda"),), GraphPool())


@contextlib.contextmanager
def no_cast_kept() -> Iterator[None]:
    """Without autocast's cache: a cast weight from before a recording would never change again.

    Also around the warming up, for compiled code asks for the cache's state and would be compiled anew.
    """
    kept = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(kept)
