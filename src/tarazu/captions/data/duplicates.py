"""Find exact and near duplicates among images, by SHA-256 and by a perceptual hash.

    image ─▶ gray, 64 x 64 ─▶ DCT ─▶ 16 x 16 lowest frequencies ─▶ above their median? ─▶ 256 bits

The hash is pHash (Zauner 2010, "Implementation and benchmarking of perceptual image hash
functions"). Resizing, recompression and small changes of brightness leave nearly all of its bits
as they are. Two images are near duplicates when at most `data.max_hash_distance` bits differ.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tarazu.captions.data.image_store import ImageStore
from tarazu.captions.data.images import open_gray
from tarazu.captions.data.parallel_map import parallel_map
from tarazu.errors import UserError
from tarazu.storage.atomic_io import write_atomic

GRAY_SIZE = 64  # side of the gray copy
HASH_SIZE = 16  # side of the square of lowest frequencies: 16 x 16 = 256 bits
BLOCK = 1024  # hashes that are compared with all others at once


@dataclass
class ImageHashes:
    """The hashes of every image, and the images that cannot be read.

    Args:
        sha256: by name, in hexadecimal.
        perceptual: by name, 64 hexadecimal digits.
        unreadable: by name, the reason.
    """

    sha256: dict[str, str]
    perceptual: dict[str, str]
    unreadable: dict[str, str]


def perceptual_hash(data: bytes, location: str = "") -> str:
    """Compute the 256-bit pHash of an image.

    Args:
        data: the image file's bytes.
        location: the file's name, for an error.

    Returns:
        64 hexadecimal digits.

    Raises:
        UserError: the image is damaged.
    """
    gray = np.asarray(open_gray(data, GRAY_SIZE, location), dtype=np.float64)
    frequencies = (_DCT @ gray @ _DCT.T)[:HASH_SIZE, :HASH_SIZE].ravel()
    # The first coefficient is the mean brightness, far above the others: the median leaves it out.
    above_median = frequencies > np.median(frequencies[1:])
    return np.packbits(above_median).tobytes().hex()


def hash_images(
    store: ImageStore,
    names: list[str],
    cache: Path,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> ImageHashes:
    """Read every image once and hash it.

    Args:
        store: where the images are.
        names: of the images to hash.
        cache: folder of earlier hashes, which are used again while the file is unchanged.
        on_progress: called with the number of images done and their total.

    Returns:
        The hashes of the readable images, and the reasons of the others.

    Raises:
        TarazuError: a worker process was killed.
    """
    path = cache / "hashes.json"
    entries = _read_cache(path)  # version of a file -> (sha256, perceptual hash, reason or "")
    missing = [name for name in names if store.version(name) not in entries]

    def hash_one(name: str) -> tuple[str, tuple[str, str, str]]:
        return store.version(name), _hash(store, name)

    num_done = 0
    for chunk in parallel_map(hash_one, missing, chunk_size=16):
        entries |= chunk
        num_done += len(chunk)
        on_progress(num_done, len(missing))
    if missing:
        write_atomic(path, json.dumps(entries).encode())

    hashes = ImageHashes({}, {}, {})
    for name in names:
        sha256, perceptual, reason = entries[store.version(name)]
        if reason:
            hashes.unreadable[name] = reason
        else:
            hashes.sha256[name], hashes.perceptual[name] = sha256, perceptual
    return hashes


def find_duplicates(hashes: ImageHashes, max_distance: int) -> list[dict]:
    """Find all pairs of images that are copies of each other.

    Args:
        hashes: of the images.
        max_distance: bits of the 256 in which two near duplicates may differ.

    Returns:
        Pairs `{"a", "b", "kind": "exact" | "near"}`, `a` before `b` by name.
    """
    names = sorted(hashes.perceptual)
    if len(names) < 2:
        return []
    packed = np.frombuffer(
        bytes.fromhex("".join(hashes.perceptual[name] for name in names)), dtype=np.uint8
    )
    bits = np.unpackbits(packed.reshape(len(names), -1), axis=1)  # (N, 256)
    # With bits as +1 and -1 a dot product counts equal bits minus different ones, so it is
    # 256 - 2 * distance: all distances of a block are one matrix product, exact in float32.
    signs = 2 * bits.astype(np.float32) - 1
    pairs = []
    for start in range(0, len(names), BLOCK):
        similarity = signs[start : start + BLOCK] @ signs[start:].T
        close = similarity >= signs.shape[1] - 2 * max_distance
        for i, j in zip(*np.nonzero(close), strict=True):
            if j > i:  # each pair once, and no image with itself
                a, b = names[start + i], names[start + j]
                kind = "exact" if hashes.sha256[a] == hashes.sha256[b] else "near"
                pairs.append({"a": a, "b": b, "kind": kind})
    return pairs


def connected_components(names: Iterable[str], pairs: list[dict]) -> list[list[str]]:
    """Group images that pairs of duplicates connect, by union-find.

    Args:
        names: all images.
        pairs: as of `find_duplicates`; pairs with an image outside `names` are ignored.

    Returns:
        Sorted groups; an image without a duplicate is a group of its own.
    """
    parent = {name: name for name in names}

    def root(name: str) -> str:
        while parent[name] != name:
            parent[name] = parent[parent[name]]  # path halving keeps the trees flat
            name = parent[name]
        return name

    for pair in pairs:
        if pair["a"] in parent and pair["b"] in parent:
            first, second = sorted((root(pair["a"]), root(pair["b"])))
            parent[second] = first
    groups: dict[str, list[str]] = {}
    for name in sorted(parent):
        groups.setdefault(root(name), []).append(name)
    return list(groups.values())


def _hash(store: ImageStore, name: str) -> tuple[str, str, str]:
    """The SHA-256, the perceptual hash, and why the image cannot be read (or "")."""
    try:
        data = store.read(name)
        return hashlib.sha256(data).hexdigest(), perceptual_hash(data, name), ""
    except UserError as error:
        return "", "", error.message


def _read_cache(path: Path) -> dict[str, list[str]]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def _dct_matrix(size: int) -> np.ndarray:
    """The DCT-II as a matrix (size, size): frequency by position."""
    frequency, position = np.mgrid[:size, :size]
    return np.cos(np.pi * frequency * (2 * position + 1) / (2 * size))


_DCT = _dct_matrix(GRAY_SIZE)
