"""Compute the encoder's features of many images at the speed of decoding.

    worker processes decode chunks of images ─▶ batches on the device ─▶ rows in memory

Three things overlap: workers decode ahead, a GPU encodes one batch, the caller stores the batch
before it.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from tarazu.captions.data.parallel_map import parallel_map

BATCH_SIZE = {"cpu": 16, "cuda": 256}  # images of one forward pass
CHUNK_SIZE = 64  # images that a worker decodes in a row: 9.6 MB of 224 x 224 pixels
MIN_SHARED_BYTES = 500_000_000  # two chunks of a dozen workers, with room for other programs


def encode_images(
    keys: Sequence[str],
    decode: Callable[[str], np.ndarray],
    encode: Callable[[Tensor], Tensor],
    device: torch.device,
) -> Iterator[tuple[Sequence[str], np.ndarray]]:
    """Decode and encode images, batch by batch.

    Args:
        keys: what `decode` knows the images by.
        decode: key -> pixels (S, S, 3), uint8; called in other processes.
        encode: pixels (B, S, S, 3), uint8, on the device -> rows (B, ...), on the device.
        device: where `encode` computes.

    Yields:
        The keys of a batch and their rows (B, ...), in order.

    Raises:
        TarazuError: `decode` raised it, or a worker process was killed.
    """
    batch_size = BATCH_SIZE[device.type]
    chunk_size = math.gcd(batch_size, CHUNK_SIZE)  # so that every batch is made of whole chunks
    chunks = parallel_map(decode, keys, chunk_size, _stack, pin_memory=device.type == "cuda")
    previous = None
    for start in range(0, len(keys), batch_size):
        batch_keys = keys[start : start + batch_size]
        num_chunks = -(-len(batch_keys) // chunk_size)
        parts = [torch.as_tensor(next(chunks)) for _ in range(num_chunks)]
        pixels = torch.cat([part.to(device, non_blocking=True) for part in parts])
        with torch.no_grad():
            rows = encode(pixels)
        batch = (batch_keys, *_copy_to_host(rows))
        if previous is not None:
            yield _wait(*previous)
        previous = batch
    if previous is not None:
        yield _wait(*previous)


def _stack(images: list[np.ndarray]) -> Tensor | np.ndarray:
    """Stack images (S, S, 3) to (n, S, S, 3).

    A tensor goes from a worker to its parent in shared memory, of which containers often have only
    64 MB. There an array goes through a pipe instead.
    """
    stacked = np.stack(images)
    in_worker = get_worker_info() is not None
    if in_worker and shutil.disk_usage("/dev/shm").free < MIN_SHARED_BYTES:
        return stacked
    return torch.from_numpy(stacked)


def _copy_to_host(rows: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """Start the copy of a GPU's rows (B, ...) to pinned memory, with the event of its end."""
    if not rows.is_cuda:
        return rows, None
    host_rows = torch.empty(rows.shape, dtype=rows.dtype, pin_memory=True)
    host_rows.copy_(rows, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()
    return host_rows, copied


def _wait(
    keys: Sequence[str], rows: Tensor, copied: torch.cuda.Event | None
) -> tuple[Sequence[str], np.ndarray]:
    if copied is not None:
        copied.synchronize()
    return keys, rows.numpy()
