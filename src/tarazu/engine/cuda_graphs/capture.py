"""Capture of one CUDA graph: side stream, warm-up, memory pool, and repair after a failure.

Capturing runs Python once and launches nothing: the GPU's driver writes down every kernel with the
addresses that it reads and writes. A replay launches all of them with one call. So whatever a graph
reads must stay at its address:

* Inputs are copied into static tensors before each replay.
* Intermediate tensors lie in a memory pool that only graphs use (`GraphPool.pool`). Graphs of the
  same pool reuse each other's memory, so a replay overwrites what another graph has left there
  (`ReplayCounter` notices).
* Gradients are added to static buffers (`GraphPool.grad_buffer`), which become the parameters'
  `.grad`.

See "CUDA Graphs" in the notes of the PyTorch documentation.
"""

from __future__ import annotations

import contextlib
import gc
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from tarazu.engine.cuda_graphs import memory

_failed_graphs: list[torch.cuda.CUDAGraph] = []  # see `release_failed_capture`
_num_pools = 0  # pools in use on a GPU


class ReplayCounter:
    """The number of the pass whose intermediate tensors are in the shared memory pool."""

    def __init__(self) -> None:
        self.number = 0

    def next(self) -> int:
        """Count a pass and return its number."""
        self.number += 1
        return self.number


class GraphPool:
    """What the graphs of one function share: a stream, memory, and the gradient buffers."""

    def __init__(self) -> None:
        has_gpu = torch.cuda.is_available()
        self.stream = torch.cuda.Stream() if has_gpu else None
        self.pool = torch.cuda.MemPool() if has_gpu else None
        self.replay_counter = ReplayCounter()
        self._grad_buffers: dict[int, Tensor] = {}  # by id of the parameter
        self._accumulate_nodes: dict[int, Any] = {}  # by id of the parameter
        if has_gpu:
            global _num_pools
            _num_pools += 1
            weakref.finalize(self, _pool_freed, self.pool.id).atexit = False
            # `grad_buffer` moves gradient accumulation to our stream on purpose.
            if hasattr(torch.autograd.graph, "set_warn_on_accumulate_grad_stream_mismatch"):
                torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)

    @property
    def is_unused(self) -> bool:
        """Whether no graph was captured into this pool yet."""
        return not self._accumulate_nodes

    def grad_buffer(self, parameter: Tensor) -> Tensor:
        """The static buffer of a parameter's gradient, in the parameter's shape.

        Autograd accumulates a gradient on the stream on which the parameter's AccumulateGrad node
        was made, and lets that stream wait. During a capture no other stream may wait for ours, so
        the node is made on our stream, and kept.
        """
        key = id(parameter)
        if self.stream is not None and key not in self._accumulate_nodes:
            with torch.cuda.stream(self.stream), torch.enable_grad():
                node = parameter.view_as(parameter).grad_fn.next_functions[0][0]
            self._accumulate_nodes[key] = node
        if key not in self._grad_buffers:
            self._grad_buffers[key] = torch.empty_like(parameter, requires_grad=False)
        return self._grad_buffers[key]

    def detach_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Move accumulated gradients out of the buffers, which a warm-up is about to overwrite.

        Args:
            parameters: parameters of any shape; those without a gradient are left alone.
        """
        for parameter in parameters:
            buffer = self._grad_buffers.get(id(parameter))
            if parameter.grad is not None and parameter.grad is buffer:
                parameter.grad = parameter.grad.clone()


def _pool_freed(pool: memory.PoolId) -> None:
    """Count a pool that was freed.

    The workspaces of cuBLAS (66 MiB for each stream on an H100) lie in the pools too and keep them.
    They can be freed only with the last pool, because graphs of other pools still write to theirs.
    """
    global _num_pools
    _num_pools -= 1
    memory.forget_pool(pool)
    if _num_pools == 0:
        torch._C._cuda_clearCublasWorkspaces()


def warm_up(work: Callable[[], None], graph_pool: GraphPool) -> None:
    """Run `work` once on the side stream, before its capture.

    Libraries choose algorithms and allocate workspaces in a first run, and compiled code is
    compiled. None of this may happen during a capture.
    """
    graph_pool.stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(graph_pool.stream), torch.cuda.use_mem_pool(graph_pool.pool):
        work()
    torch.cuda.current_stream().wait_stream(graph_pool.stream)
    torch.cuda.synchronize()


def capture(
    work: Callable[[], tuple[Tensor, ...]], graph_pool: GraphPool
) -> tuple[Callable[[], None], tuple[Tensor, ...]]:
    """Capture `work` into a CUDA graph.

    Args:
        work: launches kernels and returns tensors of any shape. It must not wait for the GPU.
        graph_pool: stream and memory of the graph.

    Returns:
        A function that replays the graph, and the tensors that each replay fills.

    Raises:
        RuntimeError: `work` cannot be captured, or memory ran out.
    """
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    holders = graph_pool.pool.use_count()
    try:
        # "thread_local": the data loader's thread may use CUDA during the capture.
        with torch.cuda.graph(
            graph,
            pool=graph_pool.pool.id,
            stream=graph_pool.stream,
            capture_error_mode="thread_local",
        ):
            outputs = work()
    except BaseException:
        release_failed_capture(graph, graph_pool.pool, holders)
        raise
    finally:
        # After a failed capture torch stays on the capture's stream.
        torch.cuda.set_stream(stream)
    return graph.replay, outputs


def release_failed_capture(
    graph: torch.cuda.CUDAGraph, pool: torch.cuda.MemPool, holders: int
) -> None:
    """Release the memory pool of a failed capture, which torch does not do.

    Up to torch 2.12 the allocator believes that the capture goes on, and the next pool that is
    freed, anyone's, ends the process (pytorch#180395). Up to 2.13 the capture holds its pool for
    ever (pytorch#190348).

    Args:
        graph: the graph of the failed capture.
        pool: its memory pool.
        holders: the pool's use count before the capture.
    """
    # The allocator of pinned host memory asks the graph for its state later on, so keep the graph.
    # After the reset it has a few bytes.
    _failed_graphs.append(graph)
    graph.reset()
    with contextlib.suppress(RuntimeError):  # the allocator does not believe that it goes on
        torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), pool.id)
    for _ in range(pool.use_count() - holders):
        torch._C._cuda_releasePool(torch.cuda.current_device(), pool.id)


def reset_generator_after_failure() -> None:
    """Capture a tiny graph after a failed capture.

    Torch's random generator believes that it is being captured until a capture has ended well.
    """
    if torch.cuda.is_available():
        with contextlib.suppress(RuntimeError):
            capture(lambda: (torch.zeros(1, device="cuda"),), GraphPool())


@contextlib.contextmanager
def gc_paused(collect_first: bool) -> Iterator[None]:
    """Pause the garbage collector: freeing an older graph during a capture would spoil the capture.

    Args:
        collect_first: collect before. Needed once for a pool, because older autograd graphs keep
            the parameters' AccumulateGrad nodes on other streams. It takes half a second.
    """
    if collect_first:
        gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextlib.contextmanager
def autocast_cache_disabled() -> Iterator[None]:
    """Disable autocast's cache of cast weights, during warm-up and capture.

    A graph that reads a weight cast before the capture would read that old value for ever. The
    warm-up needs the same setting, because compiled code depends on it and would be compiled again.
    """
    was_enabled = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(was_enabled)
