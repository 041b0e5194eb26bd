"""Pictures through the encoder at the speed of decoding: a crew decodes, the device computes, the disk writes, all at once.

crew: some batches ahead, into a ring in shared memory ─▶ device: one batch ahead ─▶ whoever asks for the rows
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from tarazu.captions.data.worker_pool import Shared, counted, crew, ready

AHEAD = {"cpu": 1, "cuda": 4}  # batches that are being decoded while one is computed
RUNNING = {"cpu": 0, "cuda": 1}  # batches that the device works on while the one before is written
BY_JOB = 8  # pictures that one of the crew decodes in a row


@dataclass
class _Batch:
    keys: Sequence[str]
    pixels: Tensor  # (n, S, S, 3) uint8, a place in the ring, filled by `jobs`
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
        decode: a key -> its pixels (size, size, 3), uint8; picklable, called elsewhere. What it raises is raised here.
        see: pixels (n, size, size, 3), uint8, on the device -> their rows (n, ...), there.
    """
    ahead, behind = AHEAD[device.type], RUNNING[device.type]
    count = sum(map(len, batches))
    ready(count)
    ring = Shared((ahead + 2, max(map(len, batches), default=0), size, size, 3), "uint8")
    decoding, running = deque(), deque()
    with crew(partial(_fill, ring, decode), count) as submit:
        for number, keys in enumerate(
            [*batches, *[None] * (ahead + behind)]
        ):  # the last ones only drain
            if keys is not None:
                decoding.append(_begin(keys, number % len(ring.array), ring.array, submit))
            if decoding and (keys is None or len(decoding) > ahead):
                running.append(_compute(decoding.popleft(), see, device))
            if running and (not decoding or len(running) > behind):
                yield _rows(running.popleft())
        while running:
            yield _rows(running.popleft())


def _fill(ring: Shared, decode: Callable[[str], np.ndarray], job: tuple[int, int, str]) -> None:
    slot, place, key = job
    ring.array[slot, place] = decode(key)


def _begin(
    keys: Sequence[str], slot: int, ring: np.ndarray, submit: Callable[[list], Future]
) -> _Batch:
    jobs = [(slot, place, key) for place, key in enumerate(keys)]
    waiting = [submit(jobs[start : start + BY_JOB]) for start in range(0, len(jobs), BY_JOB)]
    return _Batch(keys, torch.from_numpy(ring[slot, : len(keys)]), waiting)


def _compute(batch: _Batch, see: Callable[[Tensor], Tensor], device: torch.device) -> _Batch:
    """The pixels have left the ring when this returns."""
    with counted("waiting for pixels"):
        for job in batch.jobs:
            job.result()
    with counted("to the device"):
        pixels = batch.pixels.to(device, copy=True)
    with counted("encoding"), torch.no_grad():
        found = see(pixels)
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
        with counted("waiting for the device"):
            batch.done.synchronize()
    return batch.keys, batch.rows.numpy()
