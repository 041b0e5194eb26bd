"""Compute the encoder's features of many images at the speed of decoding.

    worker processes decode chunks of 8 images ─▶ batches on the device ─▶ rows in memory

Three things overlap: workers decode ahead, a GPU encodes one batch, the caller stores the batch
before it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from tarazu.captions.data.parallel_map import parallel_map

BATCH_SIZE = {"cpu": 16, "cuda": 256}  # images of one forward pass


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
    chunk_size = math.gcd(batch_size, 8)  # so that every batch is made of whole chunks
    chunks = parallel_map(decode, keys, chunk_size, _stack)
    previous = None
    for start in range(0, len(keys), batch_size):
        batch_keys = keys[start : start + batch_size]
        num_chunks = -(-len(batch_keys) // chunk_size)
        pixels = torch.cat([next(chunks).to(device) for _ in range(num_chunks)])
        with torch.no_grad():
            rows = encode(pixels)
        batch = (batch_keys, *_copy_to_host(rows))
        if previous is not None:
            yield _wait(*previous)
        previous = batch
    if previous is not None:
        yield _wait(*previous)


def _stack(images: list[np.ndarray]) -> Tensor:
    """Images (S, S, 3) as one tensor (n, S, S, 3)."""
    return torch.from_numpy(np.stack(images))


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
