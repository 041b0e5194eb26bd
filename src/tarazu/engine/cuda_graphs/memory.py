"""Peak memory of a GPU, with what recordings (CUDA graphs) use while they play and the allocator no longer counts; and a lack of it.

A recording's intermediate tensors are forgotten by Python once it is made, so the allocator calls their memory free; each
time it plays, they are there again. Here a recording's whole pool counts as used from the moment it is made.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

LACKING = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
)  # in what libraries say, of a GPU or of the host
_peak = 0  # the highest so far, since `reset`
_pools: dict[
    Any, int
] = {}  # bytes of each pool that its recordings use and the allocator calls free


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error tells of too little memory."""
    return any(text in str(error) for text in LACKING)


def reset(device: torch.device) -> None:
    """Begins a new peak."""
    global _peak
    _peak = 0
    torch.cuda.reset_peak_memory_stats(device)


def peak(device: torch.device | None = None) -> int:
    """Bytes, since `reset`."""
    return max(_peak, torch.cuda.max_memory_allocated(device) + sum(_pools.values()))


def forget(pool: Any) -> None:
    """The recordings in this pool (its id) are no more."""
    _pools.pop(pool, None)


@contextlib.contextmanager
def recording(pool: torch.cuda.MemPool | None) -> Iterator[None]:
    """Around the making of a recording in `pool`, in which the allocator counts everything itself."""
    global _peak
    if pool is None:
        yield
        return
    _peak = peak()
    _pools.pop(pool.id, None)
    torch.cuda.reset_peak_memory_stats()
    try:
        yield
    finally:
        _peak = max(_peak, torch.cuda.max_memory_allocated() + sum(_pools.values()))
        _pools[pool.id] = sum(
            part["total_size"] - part["allocated_size"] for part in pool.snapshot()
        )
        torch.cuda.reset_peak_memory_stats()
