"""Peak memory of a GPU, including captured CUDA graphs.

The tensors inside a captured graph are freed for Python when the capture ends, so the allocator
calls their memory free. Every replay writes to it again. Here the whole memory pool of a graph
counts as used from its capture on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

PoolId = tuple[int, int]

_peak = 0  # bytes, the highest value since `reset_peak`
_hidden_bytes: dict[PoolId, int] = {}  # of each pool: used by graphs, free for the allocator


def reset_peak(device: torch.device) -> None:
    """Start a new peak."""
    global _peak
    _peak = 0
    torch.cuda.reset_peak_memory_stats(device)


def peak_bytes(device: torch.device | None = None) -> int:
    """The highest memory use since `reset_peak`, in bytes."""
    return max(_peak, torch.cuda.max_memory_allocated(device) + sum(_hidden_bytes.values()))


def forget_pool(pool: PoolId) -> None:
    """Stop counting the graphs of a pool, which were freed."""
    _hidden_bytes.pop(pool, None)


@contextlib.contextmanager
def capture_counted(pool: torch.cuda.MemPool | None) -> Iterator[None]:
    """Count the memory of a capture into `pool`.

    During the capture the allocator counts the pool itself. Afterwards it would not, so the unused
    part of the pool is counted as hidden.

    Args:
        pool: the pool of the graph; None where there is no GPU.
    """
    global _peak
    if pool is None:
        yield
        return
    _peak = peak_bytes()
    _hidden_bytes.pop(pool.id, None)
    torch.cuda.reset_peak_memory_stats()
    try:
        yield
    finally:
        _peak = max(_peak, torch.cuda.max_memory_allocated() + sum(_hidden_bytes.values()))
        _hidden_bytes[pool.id] = sum(
            segment["total_size"] - segment["allocated_size"] for segment in pool.snapshot()
        )
        torch.cuda.reset_peak_memory_stats()
