"""Compute the encoder's features of each image once, and keep them in a memory-mapped file.

A cache is a folder of two files: `rows.bin` holds one row after another, `index.json` maps the
key of an image (its sha256, with the augmentation's number) to its row. The folder is named by a
hash of encoder, weights and preprocessing, so no stale row is ever read. An interrupted run
continues after its last row.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from tarazu.captions.data.augmentation import fixed_view
from tarazu.captions.data.duplicates import ImageHashes
from tarazu.captions.data.image_store import ImageStore
from tarazu.captions.data.images import open_image, pixels
from tarazu.captions.encoder.feature_extraction import encode_images
from tarazu.captions.encoder.pretrained import Pretrained
from tarazu.engine.progress import ProgressBar
from tarazu.errors import TarazuError, UserError
from tarazu.storage.atomic_io import write_atomic
from tarazu.storage.cache import cache_dir, lock_in

INDEX_SECONDS = 20.0  # between two writes of the index
MAX_GPU_FRACTION = 0.6  # of the GPU's free memory that the rows of a store may take


class RowCache:
    """Rows of one shape and dtype, by the key of the image that they come from.

    Args:
        folder: where the cache lies; created when something is written.
        shape: of one row.
        dtype: of the rows, as NumPy names it.
    """

    def __init__(self, folder: Path, shape: tuple[int, ...], dtype: str):
        self.folder, self.shape, self.dtype = folder, shape, np.dtype(dtype)
        self.row_bytes = math.prod(shape) * self.dtype.itemsize
        self.rows: dict[str, int] = self._read_index()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Lock the cache for `append`. A second process waits, and finds the rows of the first."""
        with lock_in(self.folder), open(self.folder / "rows.bin", "ab") as self._file:
            self.rows = self._read_index()
            # Rows after the last index entry came from an interrupted run.
            self._file.truncate(len(self.rows) * self.row_bytes)
            self._index_written = time.monotonic()
            try:
                yield
            finally:  # also when a signal ends the work
                self._write_index()

    def append(self, keys: list[str], rows: np.ndarray) -> None:
        """Add rows; only inside `writing`.

        Args:
            keys: of the n rows.
            rows: (n, *shape).

        Raises:
            TarazuError: the disk is full.
        """
        try:
            self._file.write(np.ascontiguousarray(rows, dtype=self.dtype).data)
        except OSError as error:
            raise TarazuError(
                f"the cache cannot be written: {error.strerror}",
                location=str(self.folder),
                hint="free some disk space, or set TARAZU_CACHE to another folder",
            ) from error
        first = len(self.rows)
        self.rows |= {key: first + i for i, key in enumerate(keys)}
        if time.monotonic() - self._index_written > INDEX_SECONDS:
            self._write_index()

    def array(self) -> np.ndarray:
        """All rows (n, *shape), mapped into memory. Changing the array does not change the file."""
        shape = (len(self.rows), *self.shape)
        return np.memmap(self.folder / "rows.bin", self.dtype, "c", shape=shape)

    def _write_index(self) -> None:
        """Write the index without waiting until the rows are on the disk.

        A file grows only by what has reached it, and `_read_index` compares with its size.
        """
        self._file.flush()
        write_atomic(self.folder / "index.json", json.dumps(self.rows).encode())
        self._index_written = time.monotonic()

    def _read_index(self) -> dict[str, int]:
        """The key -> row entries whose rows are completely in the file."""
        try:
            rows = json.loads((self.folder / "index.json").read_text())
            size = (self.folder / "rows.bin").stat().st_size
        except (OSError, ValueError):
            return {}
        return {key: row for key, row in rows.items() if (row + 1) * self.row_bytes <= size}


@dataclass(frozen=True)
class ImageView:
    """A view of an image.

    Args:
        name: the image.
        view: 0 for the image itself, else the number of a crop of `augmentation.fixed_view`.
        min_crop_area: smallest fraction of the image's area that a crop keeps.
    """

    name: str
    view: int = 0
    min_crop_area: float = 1.0

    def key(self, hashes: ImageHashes) -> str:
        """The key of the view's row in a `RowCache`."""
        suffix = f".{self.view}.{self.min_crop_area:g}" if self.view else ""
        return hashes.sha256[self.name] + suffix


class FeatureStore:
    """Rows of a cache in the order of a data set's views; held on the GPU where they fit.

    Args:
        array: the cache's rows (n, ...).
        rows: the N views' rows, as indices into `array`.
        device: where `lookup` gives them.
    """

    def __init__(self, array: np.ndarray, rows: list[int], device: torch.device):
        self.array, self.rows, self.device = array, np.asarray(rows), device

    def lookup(self, indices: torch.Tensor) -> torch.Tensor:
        """Return the rows of some views.

        Args:
            indices: (B,) positions among the N views, on any device.

        Returns:
            (B, ...), on the store's device.
        """
        if self.gpu_rows is not None:
            return self.gpu_rows[indices.to(self.device)]
        return self._tensor(self.rows[indices.cpu().numpy()]).to(self.device)

    def mean_pooled(self) -> FeatureStore:
        """Average features (N, P, D) over the P positions: (N, 1, D) in float32, in memory."""
        means = np.empty((len(self.rows), 1, self.array.shape[2]), np.float32)
        for start in range(0, len(self.rows), 256):
            features = self._tensor(self.rows[start : start + 256]).to(self.device)
            pooled = features.float().mean(1, keepdim=True)
            means[start : start + len(features)] = pooled.cpu().numpy()
        return FeatureStore(means, list(range(len(means))), self.device)

    @cached_property
    def gpu_rows(self) -> torch.Tensor | None:
        """All rows (N, ...) on the GPU, or None where there is no GPU or too little free memory."""
        row_shape = self.array.shape[1:]
        needed = len(self.rows) * math.prod(row_shape) * self.array.itemsize
        if self.device.type != "cuda":
            return None
        if needed > MAX_GPU_FRACTION * torch.cuda.mem_get_info(self.device)[0]:
            return None
        dtype = self._tensor(self.rows[:1]).dtype
        gpu_rows = torch.empty(len(self.rows), *row_shape, dtype=dtype, device=self.device)
        for start in range(0, len(gpu_rows), 512):
            block = self.rows[start : start + 512]
            if (np.diff(block) == 1).all():  # consecutive rows: a slice of the file, not a copy
                gpu_rows[start : start + 512] = torch.from_numpy(
                    self.array[block[0] : block[-1] + 1]
                )
            else:
                gpu_rows[start : start + 512] = self._tensor(block)
        return gpu_rows

    def free_gpu(self) -> None:
        """Drop the rows on the GPU; the next `lookup` copies them again."""
        self.__dict__.pop("gpu_rows", None)

    def _tensor(self, rows: np.ndarray) -> torch.Tensor:
        """A copy of some rows: indexing with an array copies, so the file's mapping stays clean."""
        return torch.from_numpy(self.array[rows])


def load_features(
    encoder: Pretrained,
    store: ImageStore,
    views: list[ImageView],
    hashes: ImageHashes,
    precision: str,
    device: torch.device,
) -> FeatureStore:
    """Return the frozen encoder's features, computing those that the cache does not hold.

    Args:
        encoder: moved to the device.
        store: where the images' bytes are.
        views: the N views, in the order of the result.
        hashes: of the images.
        precision: of the cached features, "float16" or "float32"; on a GPU also of the encoder.
        device: where the encoder runs and the features are looked up.

    Returns:
        Feature maps (N, P, D): P positions of D channels.

    Raises:
        TarazuError: an image changed while it was read, or the disk is full.
    """
    cache = RowCache(
        cache_dir() / "features" / f"{encoder.cache_key()}-{precision}",
        (encoder.grid_size**2, encoder.module.width),
        precision,
    )
    module, dtype = encoder.module.to(device), getattr(torch, precision)
    half = device.type == "cuda" and dtype == torch.float16

    def encode(images: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device.type, torch.float16, enabled=half):
            return module(images).to(dtype)

    return _fill(cache, encoder, store, views, hashes, encode, "features", device)


def load_pixels(
    encoder: Pretrained,
    store: ImageStore,
    views: list[ImageView],
    hashes: ImageHashes,
    device: torch.device,
) -> FeatureStore:
    """Return the views' pixels (N, S, S, 3), uint8, for an encoder that is trained as well.

    Args:
        encoder: says the size of the images.
        store: where the images' bytes are.
        views: the N views, in the order of the result.
        hashes: of the images.
        device: where the pixels are looked up.

    Raises:
        TarazuError: an image changed while it was read, or the disk is full.
    """
    cache = RowCache(
        cache_dir() / "pixels" / f"{encoder.size}-{encoder.resample}",
        (encoder.size, encoder.size, 3),
        "uint8",
    )
    return _fill(cache, encoder, store, views, hashes, lambda images: images, "pixels", device)


def _fill(
    cache: RowCache,
    encoder: Pretrained,
    store: ImageStore,
    views: list[ImageView],
    hashes: ImageHashes,
    encode: Callable[[torch.Tensor], torch.Tensor],
    title: str,
    device: torch.device,
) -> FeatureStore:
    """Compute the rows that the cache does not hold, and return all of them."""
    keys = [view.key(hashes) for view in views]
    view_of = dict(zip(keys, views, strict=True))

    def decode(key: str) -> np.ndarray:  # (S, S, 3); in a worker process
        view = view_of[key]
        image = open_image(store.read(view.name), view.name)
        image = fixed_view(image, hashes.sha256[view.name], view.view, view.min_crop_area)
        return pixels(image, encoder.size, encoder.resample)

    if not cache.rows.keys() >= view_of.keys():
        with cache.writing(), ProgressBar(title) as bar:
            missing = [key for key in view_of if key not in cache.rows]
            num_done = 0
            for batch_keys, rows in _not_unreadable(encode_images(missing, decode, encode, device)):
                cache.append(batch_keys, rows)
                num_done += len(batch_keys)
                bar.at(num_done / len(missing), f"{num_done} of {len(missing)} images")
    return FeatureStore(cache.array(), [cache.rows[key] for key in keys], device)


def _not_unreadable(batches: Iterator) -> Iterator:
    """Raise a `UserError` as a failure of the work: every image could be read to be hashed."""
    try:
        yield from batches
    except UserError as error:
        raise TarazuError(
            f"an image changed while it was read: {error.message}",
            location=error.location,
            hint="run again",
        ) from error
