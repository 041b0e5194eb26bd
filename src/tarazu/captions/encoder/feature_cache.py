"""What the encoder sees is computed once per picture and kept in a file that is mapped into memory.

A cache is a folder: `rows.bin` (one row after another) and `index.json` (sha256 of the picture -> row). The folder's
name is the hash of encoder, weights and preprocessing, so nothing stale is ever read. A run that is cut goes on where
it stopped.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch

from tarazu.captions.data.augmentation import fixed_view
from tarazu.captions.data.duplicates import ImageHashes
from tarazu.captions.data.image_store import ImageStore
from tarazu.captions.data.images import open_image, pixels
from tarazu.captions.data.worker_pool import counted
from tarazu.captions.encoder.feature_extraction import stream
from tarazu.captions.encoder.pretrained import Pretrained
from tarazu.engine.progress import ProgressBar
from tarazu.errors import TarazuError, UserError
from tarazu.storage.atomic_io import write_atomic
from tarazu.storage.cache import cache_dir, lock_in

AT_ONCE = {"cpu": 16, "cuda": 256}  # pictures through the encoder together
SAVE_SECONDS = 20.0  # between two notes of how far it is
MAX_GPU_FRACTION = 0.6  # of the free memory that a bank may lookup to live there


class RowCache:
    """Rows of one shape and dtype, by the sha256 of the picture that they come from."""

    def __init__(self, folder: Path, shape: tuple[int, ...], dtype: str):
        self.folder, self.shape, self.dtype = folder, shape, np.dtype(dtype)
        self.row_bytes = math.prod(shape) * self.dtype.itemsize
        self.rows: dict[str, int] = self._read()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Alone with the cache; another process that wants to write waits, and then finds the work done."""
        with lock_in(self.folder):
            self.rows = self._read()
            with open(self.folder / "rows.bin", "ab") as self._file:
                # Drop rows that were written after the index was last saved.
                self._file.truncate(len(self.rows) * self.row_bytes)
                self._noted = time.monotonic()
                try:
                    yield
                finally:  # also when a signal ends the block
                    with counted("writing"):
                        self._note()

    def append(self, keys: list[str], rows: np.ndarray) -> None:
        """Adds rows (n, *shape). Raises `TarazuError` when the disk is full."""
        try:
            with counted("writing"):
                self._file.write(np.ascontiguousarray(rows, dtype=self.dtype).data)
        except OSError as error:
            raise TarazuError(
                f"the cache cannot be written: {error.strerror}",
                location=str(self.folder),
                hint="free some disk space, or point TARAZU_CACHE elsewhere",
            ) from error
        before = len(self.rows)
        self.rows |= {key: before + i for i, key in enumerate(keys)}
        if time.monotonic() - self._noted > SAVE_SECONDS:
            self._note()

    def array(self) -> np.ndarray:
        """All rows, mapped into memory; what is written to them does not reach the file."""
        return np.memmap(
            self.folder / "rows.bin", self.dtype, "c", shape=(len(self.rows), *self.shape)
        )

    def _note(self) -> None:
        """The index, without waiting for the disk: a file grows only by what has reached it, and `_read` looks at that."""
        self._file.flush()
        write_atomic(self.folder / "index.json", json.dumps(self.rows).encode())
        self._noted = time.monotonic()

    def _read(self) -> dict[str, int]:
        try:
            rows = json.loads((self.folder / "index.json").read_text())
            size = (self.folder / "rows.bin").stat().st_size
        except (OSError, ValueError):
            return {}
        return {key: row for key, row in rows.items() if (row + 1) * self.row_bytes <= size}


@dataclass(frozen=True)
class ImageView:
    """A view of a picture: 0 is the picture itself, others are crops that keep at least `min_crop_area` of it."""

    name: str
    view: int = 0
    min_crop_area: float = 1.0

    def key(self, looks: ImageHashes) -> str:
        """What its row is filed under."""
        return looks.sha256[self.name] + (
            f".{self.view}.{self.min_crop_area:g}" if self.view else ""
        )


class FeatureStore:
    """Rows of a cache in the order of a data set's items; held on the GPU where they fit."""

    def __init__(self, array: np.ndarray, rows: list[int], device: torch.device):
        self.array, self.rows, self.device = array, np.asarray(rows), device

    def lookup(self, pictures: torch.Tensor) -> torch.Tensor:
        """pictures (B,) on any device -> their rows (B, ...) on the bank's device."""
        if self.resident is not None:
            return self.resident[pictures.to(self.device)]
        return self._tensor(self.rows[pictures.cpu().numpy()]).to(self.device)

    def mean_pooled(self) -> FeatureStore:
        """Features (N, P, D) -> their means (N, 1, D), in float32, held in memory."""
        means = np.empty((len(self.rows), 1, self.array.shape[2]), np.float32)
        for start in range(0, len(self.rows), 256):
            some = self._tensor(self.rows[start : start + 256]).to(
                self.device
            )  # passing through: they need not stay there
            means[start : start + len(some)] = some.float().mean(1, keepdim=True).cpu().numpy()
        return FeatureStore(means, list(range(len(means))), self.device)

    @cached_property
    def resident(self) -> torch.Tensor | None:
        """Everything on the GPU, or None."""
        needed = len(self.rows) * math.prod(self.array.shape[1:]) * self.array.itemsize
        if (
            self.device.type != "cuda"
            or needed > MAX_GPU_FRACTION * torch.cuda.mem_get_info(self.device)[0]
        ):
            return None
        rows = torch.empty(
            len(self.rows),
            *self.array.shape[1:],
            dtype=self._tensor(self.rows[:1]).dtype,
            device=self.device,
        )
        for start in range(0, len(rows), 512):
            some = self.rows[start : start + 512]
            if (
                some[-1] - some[0] == len(some) - 1 and (np.diff(some) == 1).all()
            ):  # neighbours: no copy on the way
                rows[start : start + 512] = torch.from_numpy(self.array[some[0] : some[-1] + 1])
            else:
                rows[start : start + 512] = self._tensor(some)
        return rows

    def _tensor(self, rows: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(
            self.array[rows]
        )  # fancy indexing copies, so the map itself stays untouched


def load_features(
    encoder: Pretrained,
    store: ImageStore,
    items: list[ImageView],
    looks: ImageHashes,
    precision: str,
    device: torch.device,
) -> FeatureStore:
    """The encoder's maps (N, P, D) of the items, computed where the cache has none."""
    cache = RowCache(
        cache_dir() / "features" / f"{encoder.cache_key()}-{precision}",
        (encoder.grid_size**2, encoder.module.width),
        precision,
    )
    module, dtype = encoder.module.to(device), getattr(torch, precision)
    half = (
        device.type == "cuda" and dtype == torch.float16
    )  # what is kept in half precision is computed in it

    def see(batch: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device.type, torch.float16, enabled=half):
            return module(batch).to(dtype)

    return _fill(cache, encoder, store, items, looks, see, "features", device)


def load_pixels(
    encoder: Pretrained,
    store: ImageStore,
    items: list[ImageView],
    looks: ImageHashes,
    device: torch.device,
) -> FeatureStore:
    """The items' pixels (N, S, S, 3), uint8, for an encoder that is trained as well."""
    cache = RowCache(
        cache_dir() / "pixels" / f"{encoder.size}-{encoder.resample}",
        (encoder.size, encoder.size, 3),
        "uint8",
    )
    return _fill(cache, encoder, store, items, looks, lambda batch: batch, "pixels", device)


def _fill(
    cache: RowCache,
    encoder: Pretrained,
    store: ImageStore,
    items: list[ImageView],
    looks: ImageHashes,
    see: Callable[[torch.Tensor], torch.Tensor],
    what: str,
    device: torch.device,
) -> FeatureStore:
    """Computes the missing rows and gives all of them."""
    keys = [item.key(looks) for item in items]
    wanted = {key: item for key, item in zip(keys, items, strict=True) if key not in cache.rows}
    decode = partial(_decode, store, looks.sha256, wanted, encoder.size, encoder.resample)

    if wanted:
        with cache.writing(), ProgressBar(what) as bar:
            missing = [key for key in wanted if key not in cache.rows]
            batches = [
                missing[i : i + AT_ONCE[device.type]]
                for i in range(0, len(missing), AT_ONCE[device.type])
            ]
            done, written = 0, Future()
            written.set_result(None)
            with ThreadPoolExecutor(1) as disk:  # writes a batch while the next one is computed
                for some, rows in _undisturbed(stream(batches, decode, see, encoder.size, device)):
                    with counted("waiting for the disk"):
                        written.result()
                    written = disk.submit(cache.append, some, rows)
                    done += len(some)
                    bar.at(done / len(missing), f"{done} of {len(missing)} pictures")
                with counted("waiting for the disk"):
                    written.result()
    return FeatureStore(cache.array(), [cache.rows[key] for key in keys], device)


def _decode(
    store: ImageStore,
    sha256: dict[str, str],
    wanted: dict[str, ImageView],
    size: int,
    resample: str,
    key: str,
) -> np.ndarray:
    """In one of the crew."""
    item = wanted[key]
    picture = fixed_view(
        open_image(store.read(item.name), item.name),
        sha256[item.name],
        item.view,
        item.min_crop_area,
    )
    return pixels(picture, size, resample)


def _undisturbed(batches: Iterator) -> Iterator:
    try:
        yield from batches
    except UserError as error:  # it was readable a moment ago
        raise TarazuError(
            f"a picture changed while it was read: {error.message}",
            location=error.location,
            hint="run again",
        ) from error
