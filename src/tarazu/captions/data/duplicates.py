"""Exact and near copies among pictures: sha256 of the bytes, and a perceptual hash of what is to be seen."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from tarazu.captions.data.image_store import ImageStore
from tarazu.captions.data.images import open_gray
from tarazu.captions.data.worker_pool import crew
from tarazu.errors import UserError
from tarazu.storage.atomic_io import write_atomic

SIDE, KEPT = 64, 16  # a 64 x 64 gray copy; its 16 x 16 lowest frequencies
BY_JOB = 16  # pictures that one of the crew looks at in a row
AT_ONCE = 1024  # hashes that are compared with all others together


@dataclass
class ImageHashes:
    """What reading every picture gave: by name, its sha256 and its 256-bit perceptual hash; and what failed."""

    sha256: dict[str, str]
    perceptual: dict[str, str]
    unreadable: dict[str, str]


def perceptual_hash(data: bytes, where: str = "") -> str:
    """64 hex digits: the signs of the lowest DCT frequencies around their median (Zauner 2010, pHash).

    Raises `UserError` when the picture is damaged.
    """
    gray = np.asarray(open_gray(data, SIDE, where), dtype=np.float64)
    frequencies = (_DCT @ gray @ _DCT.T)[:KEPT, :KEPT].ravel()
    return np.packbits(frequencies > np.median(frequencies[1:])).tobytes().hex()


def hash_images(
    store: ImageStore,
    names: list[str],
    cache: Path,
    tell: Callable[[int, int], None] = lambda done, of: None,
) -> ImageHashes:
    """Reads every picture once; what an earlier call found is taken from `cache` as long as the file has not
    changed."""
    path = cache / "looks.json"
    known = _known(path)
    todo = [name for name in names if store.stamp(name) not in known]
    with crew(partial(_look_at, store), len(todo)) as submit:
        parts = [todo[start : start + BY_JOB] for start in range(0, len(todo), BY_JOB)]
        done = 0
        for some, job in zip(parts, [submit(part) for part in parts], strict=True):
            known |= {
                store.stamp(name): found for name, found in zip(some, job.result(), strict=True)
            }
            done += len(some)
            tell(done, len(todo))
    if todo:
        write_atomic(path, json.dumps(known).encode())
    seen = {name: known[store.stamp(name)] for name in names}
    return ImageHashes(
        {name: found[0] for name, found in seen.items() if found[1]},
        {name: found[1] for name, found in seen.items() if found[1]},
        {name: found[2] for name, found in seen.items() if not found[1]},
    )


def find_duplicates(looks: ImageHashes, near: int) -> list[dict]:
    """Copies: `{"a", "b", "kind": "exact"|"near"}`, near where at most `near` of 256 bits differ."""
    names = sorted(looks.perceptual)
    if len(names) < 2:
        return []
    packed = np.frombuffer(
        bytes.fromhex("".join(looks.perceptual[name] for name in names)), dtype=np.uint8
    )
    signs = 2 * np.unpackbits(packed.reshape(len(names), -1), axis=1).astype(np.float32) - 1
    found = []
    for start in range(0, len(names), AT_ONCE):
        some = signs[start : start + AT_ONCE]
        alike = some @ signs[start:].T  # bits that agree less those that differ: exact in float32
        for i, j in zip(*np.nonzero(alike >= signs.shape[1] - 2 * near), strict=True):
            if j > i:
                a, b = names[start + i], names[start + j]
                found.append(
                    {
                        "a": a,
                        "b": b,
                        "kind": "exact" if looks.sha256[a] == looks.sha256[b] else "near",
                    }
                )
    return found


def connected_components(names: Iterable[str], copies: list[dict]) -> list[list[str]]:
    """The names in sets that copies tie together, each sorted; a picture without a copy stands alone."""
    parent = {name: name for name in names}

    def root(name: str) -> str:
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    for pair in copies:
        if pair["a"] in parent and pair["b"] in parent:
            first, second = sorted((root(pair["a"]), root(pair["b"])))
            parent[second] = first
    sets: dict[str, list[str]] = {}
    for name in sorted(parent):
        sets.setdefault(root(name), []).append(name)
    return list(sets.values())


def _look_at(store: ImageStore, name: str) -> tuple[str, str, str]:
    try:
        data = store.read(name)
        return hashlib.sha256(data).hexdigest(), perceptual_hash(data, name), ""
    except UserError as error:
        return "", "", error.message


def _known(path: Path) -> dict[str, list[str]]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def _dct_matrix(side: int) -> np.ndarray:
    row, column = np.mgrid[:side, :side]
    return np.cos(np.pi * row * (2 * column + 1) / (2 * side))


_DCT = _dct_matrix(SIDE)
