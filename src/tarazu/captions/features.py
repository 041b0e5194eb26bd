"""What the encoder sees is computed once per picture and kept in a file that is mapped into memory.

A cache is a folder: `rows.bin` (one row after another) and `index.json` (sha256 of the picture -> row). The folder's name is
the hash of encoder, weights and preprocessing, so nothing stale is ever read. A run that is cut goes on where it stopped.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from tarazu.captions.duplicates import Looks
from tarazu.captions.images import open_image, pixels
from tarazu.captions.pretrained import Pretrained
from tarazu.captions.sources import ImageStore
from tarazu.engine.progress import Bar
from tarazu.errors import BadInput, TarazuError
from tarazu.run_folder import write_aside

AT_ONCE = {"cpu": 16, "cuda": 128}  # pictures through the encoder together
SAVE_EVERY = 256  # pictures between two notes of how far it is
SHARE_OF_GPU = 0.4  # of the free memory that a bank may take to live there


def cache_folder() -> Path:
    """Where tarazu keeps what it can make again: TARAZU_CACHE, or the user's cache folder."""
    return Path(os.environ.get("TARAZU_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tarazu")


class RowCache:
    """Rows of one shape and dtype, by the sha256 of the picture that they come from."""

    def __init__(self, folder: Path, shape: tuple[int, ...], dtype: str):
        self.folder, self.shape, self.dtype = folder, shape, np.dtype(dtype)
        self.row_bytes = math.prod(shape) * self.dtype.itemsize
        self.rows: dict[str, int] = self._read()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Alone with the cache; another process that wants to write waits, and then finds the work done."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self.rows = self._read()
            path = self.folder / "rows.bin"
            with open(path, "ab") as self._file:
                self._file.truncate(len(self.rows) * self.row_bytes)  # what was written after the last note
                try:
                    yield
                finally:  # also when a signal ends it
                    self._note()

    def append(self, keys: list[str], rows: np.ndarray) -> None:
        """Adds rows (n, *shape). Raises `TarazuError` when the disk is full."""
        try:
            self._file.write(np.ascontiguousarray(rows, dtype=self.dtype).tobytes())
        except OSError as error:
            raise TarazuError(f"the cache cannot be written: {error.strerror}", where=str(self.folder), todo="free some disk space, or point TARAZU_CACHE elsewhere") from error
        before = len(self.rows)
        self.rows |= {key: before + i for i, key in enumerate(keys)}
        if before // SAVE_EVERY != len(self.rows) // SAVE_EVERY:
            self._note()

    def array(self) -> np.ndarray:
        """All rows, mapped into memory, read-only."""
        return np.memmap(self.folder / "rows.bin", self.dtype, "r", shape=(len(self.rows), *self.shape))

    def _note(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        write_aside(self.folder / "index.json", json.dumps(self.rows).encode())

    def _read(self) -> dict[str, int]:
        try:
            rows = json.loads((self.folder / "index.json").read_text())
            size = (self.folder / "rows.bin").stat().st_size
        except (OSError, ValueError):
            return {}
        return {key: row for key, row in rows.items() if (row + 1) * self.row_bytes <= size}


class Bank:
    """Rows of a cache in the order of a data set's pictures; held on the GPU where they fit."""

    def __init__(self, array: np.ndarray, rows: list[int], device: torch.device):
        self.array, self.rows, self.device = array, np.asarray(rows), device

    def take(self, pictures: torch.Tensor) -> torch.Tensor:
        """pictures (B,) on any device -> their rows (B, ...) on the bank's device."""
        if self.resident is not None:
            return self.resident[pictures.to(self.device)]
        return self._tensor(self.rows[pictures.cpu().numpy()]).to(self.device)

    def mean(self) -> Bank:
        """Features (N, P, D) -> their means (N, 1, D), in float32, held in memory."""
        means = np.concatenate([self.array[self.rows[i : i + 256]].astype(np.float32).mean(1, keepdims=True) for i in range(0, len(self.rows), 256)])
        return Bank(means, list(range(len(means))), self.device)

    @cached_property
    def resident(self) -> torch.Tensor | None:
        """Everything on the GPU, or None."""
        needed = len(self.rows) * math.prod(self.array.shape[1:]) * self.array.itemsize
        if self.device.type != "cuda" or needed > SHARE_OF_GPU * torch.cuda.mem_get_info(self.device)[0]:
            return None
        return torch.cat([self._tensor(self.rows[i : i + 512]).to(self.device) for i in range(0, len(self.rows), 512)])

    def _tensor(self, rows: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(self.array[rows])  # fancy indexing copies, so the map itself stays untouched


def features(encoder: Pretrained, store: ImageStore, names: list[str], looks: Looks, precision: str, device: torch.device) -> Bank:
    """The encoder's maps (N, P, D) of the named pictures, computed where the cache has none."""
    cache = RowCache(cache_folder() / "features" / f"{encoder.key()}-{precision}", (encoder.side**2, encoder.module.width), precision)
    module = encoder.module.to(device)

    def see(batch: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return module(torch.from_numpy(batch).to(device)).cpu().numpy()

    _fill(cache, encoder, store, names, looks, see, "features", AT_ONCE[device.type])
    return Bank(cache.array(), [cache.rows[looks.sha256[name]] for name in names], device)


def pictures(encoder: Pretrained, store: ImageStore, names: list[str], looks: Looks, device: torch.device) -> Bank:
    """The pictures' pixels (N, S, S, 3), uint8, for an encoder that is trained as well."""
    cache = RowCache(cache_folder() / "pixels" / f"{encoder.size}-{encoder.resample}", (encoder.size, encoder.size, 3), "uint8")
    _fill(cache, encoder, store, names, looks, lambda batch: batch, "pixels", AT_ONCE[device.type])
    return Bank(cache.array(), [cache.rows[looks.sha256[name]] for name in names], device)


def _fill(cache: RowCache, encoder: Pretrained, store: ImageStore, names: list[str], looks: Looks, see: Callable, what: str, at_once: int) -> None:
    """Computes the missing rows; pictures are decoded by threads while the encoder is at work on the batch before."""
    wanted = {looks.sha256[name]: name for name in names}
    if all(key in cache.rows for key in wanted):
        return

    def decode(name: str) -> np.ndarray:
        return pixels(open_image(store.read(name), name), encoder.size, encoder.resample)

    with cache.writing(), ThreadPoolExecutor(os.cpu_count()) as pool, Bar(what) as bar:
        keys = [key for key in wanted if key not in cache.rows]
        batches = [keys[i : i + at_once] for i in range(0, len(keys), at_once)]
        ahead = [pool.submit(decode, wanted[key]) for key in batches[0]] if batches else []
        for number, batch in enumerate(batches):
            now, ahead = ahead, [pool.submit(decode, wanted[key]) for key in (batches[number + 1] if number + 1 < len(batches) else [])]
            try:
                decoded = np.stack([job.result() for job in now])
            except BadInput as error:  # it was readable a moment ago
                raise TarazuError(f"a picture changed while it was read: {error.what}", where=error.where, todo="run again") from error
            cache.append(batch, see(decoded))
            done = min((number + 1) * at_once, len(keys))
            bar.at(done / len(keys), f"{done} of {len(keys)} pictures")
