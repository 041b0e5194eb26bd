"""Pictures through the encoder at the speed of decoding: threads decode, the device computes, the disk writes, all at once.

    threads: some batches ahead, straight into pinned memory ─▶ device: one batch ahead ─▶ whoever asks for the rows

Pillow decodes and resizes outside the interpreter lock, so threads do; each takes several pictures at a time.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

AHEAD = {"cpu": 1, "cuda": 4}  # batches that are being decoded while one is computed
RUNNING = {"cpu": 0, "cuda": 1}  # batches that the device works on while the one before is written
BY_THREAD = 8  # pictures of one job


@dataclass
class _Batch:
    keys: Sequence[str]
    pixels: Tensor  # (n, S, S, 3) uint8, filled by `jobs`
    jobs: list[Future]
    rows: Tensor | None = None
    done: torch.cuda.Event | None = None


def stream(
    batches: list[list[str]],
    decode: Callable[[str], np.ndarray],
    see: Callable[[Tensor], Tensor],
    size: int,
    device: torch.device,
) -> Iterator[tuple[Sequence[str], np.ndarray]]:
    """Yields (keys, what `see` makes of their pictures) batch by batch, in order.

    Args:
        decode: a key -> its pixels (size, size, 3), uint8; called from threads. What it raises is raised here.
        see: pixels (n, size, size, 3), uint8, on the device -> their rows (n, ...), there.
    """
    on_gpu = device.type == "cuda"
    decoding, running = deque(), deque()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for keys in [*batches, *[None] * (AHEAD[device.type] + RUNNING[device.type])]:  # the last ones only drain
            if keys is not None:
                decoding.append(_begin(keys, decode, size, pool, on_gpu))
            if decoding and (keys is None or len(decoding) > AHEAD[device.type]):
                running.append(_compute(decoding.popleft(), see, device))
            if running and (not decoding or len(running) > RUNNING[device.type]):
                yield _rows(running.popleft())
        while running:
            yield _rows(running.popleft())


def _begin(keys: Sequence[str], decode: Callable, size: int, pool: ThreadPoolExecutor, pinned: bool) -> _Batch:
    pixels = torch.empty(len(keys), size, size, 3, dtype=torch.uint8, pin_memory=pinned)
    rows = pixels.numpy()

    def some(start: int) -> None:
        for place in range(start, min(start + BY_THREAD, len(keys))):
            rows[place] = decode(keys[place])

    return _Batch(keys, pixels, [pool.submit(some, start) for start in range(0, len(keys), BY_THREAD)])


def _compute(batch: _Batch, see: Callable[[Tensor], Tensor], device: torch.device) -> _Batch:
    for job in batch.jobs:
        job.result()
    with torch.no_grad():
        found = see(batch.pixels.to(device, non_blocking=True))
    if device.type != "cuda":
        batch.rows = found
        return batch
    batch.rows = torch.empty(found.shape, dtype=found.dtype, pin_memory=True)
    batch.rows.copy_(found, non_blocking=True)
    batch.done = torch.cuda.Event()
    batch.done.record()
    return batch


def _rows(batch: _Batch) -> tuple[Sequence[str], np.ndarray]:
    if batch.done is not None:
        batch.done.synchronize()
    return batch.keys, batch.rows.numpy()
