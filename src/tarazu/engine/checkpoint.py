"""Checkpoints that survive kill -9, a full disk and a flipped bit: written aside, flushed, renamed, hashed.

A checkpoint is a folder `step-00000120/` with safetensors, `state.json`, and `manifest.json` that holds the sha256 of the
others. Two are kept: the older one goes only after the newer one is complete.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as tensor_bytes

from tarazu.errors import TarazuError
from tarazu.storage.atomic_io import fsync_dir, replace_nonfinite

KEEP = 2


def save(folder: Path, step: int, tensors: dict[str, dict[str, torch.Tensor]], state: dict) -> None:
    """Writes `folder/step-<step>/` from groups of tensors (one file each) and a JSON state.

    Raises `TarazuError` when the disk refuses; the earlier checkpoints are then untouched.
    """
    final, aside = folder / f"step-{step:08d}", folder / f"step-{step:08d}.writing"
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        files = {
            f"{name}.safetensors": tensor_bytes(
                {k: v.detach().contiguous().cpu() for k, v in group.items()}
            )
            for name, group in tensors.items()
        }
        files["state.json"] = json.dumps(replace_nonfinite(state), allow_nan=False).encode()
        files["manifest.json"] = json.dumps(
            {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
        ).encode()
        for name, data in files.items():
            _write(aside / name, data)
        fsync_dir(aside)
        shutil.rmtree(final, ignore_errors=True)
        os.rename(aside, final)
        fsync_dir(folder)
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise TarazuError(
            f"the checkpoint cannot be written: {error.strerror}",
            location=str(final),
            hint="free some disk space, then `tarazu resume`; the previous checkpoint is intact",
        ) from error
    for old in _steps(folder)[KEEP:]:
        shutil.rmtree(old, ignore_errors=True)


def load(folder: Path) -> tuple[dict[str, dict[str, torch.Tensor]], dict, list[str]] | None:
    """The newest checkpoint whose hashes hold: (groups of tensors, state, complaints about newer ones), or None."""
    complaints = []
    for path in _steps(folder):
        try:
            return (*_read(path), complaints)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
            complaints.append(f"{path.name} is damaged ({error}); went back to the one before it")
    if complaints:
        raise TarazuError(
            "; ".join(complaints),
            location=str(folder),
            hint="no checkpoint is whole: remove this method's folder and run again",
        )
    return None


def _read(path: Path) -> tuple[dict[str, dict[str, torch.Tensor]], dict]:
    manifest = json.loads((path / "manifest.json").read_bytes())
    tensors, state = {}, None
    for name, expected in manifest.items():
        data = (path / name).read_bytes()
        if hashlib.sha256(data).hexdigest() != expected:
            raise ValueError(f"{name} does not match its sha256")
        if name == "state.json":
            state = json.loads(data)
        else:
            tensors[name.removesuffix(".safetensors")] = load_tensors(data)
    if state is None:
        raise ValueError("no state.json")
    return tensors, state


def _steps(folder: Path) -> list[Path]:
    """Finished checkpoints, newest first."""
    return sorted(
        (p for p in folder.glob("step-*") if p.is_dir() and not p.name.endswith(".writing")),
        reverse=True,
    )


def _write(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
