"""Checkpoints that survive kill -9, a full disk and a flipped bit.

A checkpoint is a folder `step-00000120/` with one safetensors file for each group of tensors,
`state.json`, and `manifest.json` with the sha256 of every other file. It is written under a
temporary name, flushed with fsync, and renamed: readers see all of it or nothing. The newest two
are kept.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as tensor_bytes

from tarazu.errors import TarazuError
from tarazu.storage.atomic_io import fsync_dir, replace_nonfinite

KEEP = 2  # checkpoints on disk
TEMP_SUFFIX = ".writing"  # of a checkpoint that is not complete

TensorGroups = dict[str, dict[str, torch.Tensor]]


def save(folder: Path, step: int, tensors: TensorGroups, state: dict[str, Any]) -> None:
    """Write the checkpoint `folder/step-<step>/`.

    Args:
        folder: where the checkpoints of the run are.
        step: number of finished optimizer steps.
        tensors: group name -> tensor name -> tensor of any shape and device.
        state: JSON values. Infinite numbers and NaN become null.

    Raises:
        TarazuError: the disk refuses. Earlier checkpoints are then unchanged.
    """
    final_path = folder / f"step-{step:08d}"
    temp_path = folder / f"{final_path.name}{TEMP_SUFFIX}"
    try:
        # 1. Write all files to a temporary folder, each flushed to disk. A crash leaves a folder
        #    with TEMP_SUFFIX, which `load` ignores.
        shutil.rmtree(temp_path, ignore_errors=True)
        temp_path.mkdir(parents=True)
        for name, data in _serialize(tensors, state).items():
            _write_flushed(temp_path / name, data)
        # 2. Flush the folder, so that the names of its files are on disk before the rename.
        fsync_dir(temp_path)
        # 3. Rename the folder. This is atomic: a checkpoint is complete or absent. The removal is
        #    for a damaged checkpoint of the same step, to which the run went back.
        shutil.rmtree(final_path, ignore_errors=True)
        os.rename(temp_path, final_path)
        # 4. Flush the parent folder, so that the rename itself survives a power failure.
        fsync_dir(folder)
    except OSError as error:
        shutil.rmtree(temp_path, ignore_errors=True)
        raise TarazuError(
            f"the checkpoint cannot be written: {error.strerror}",
            location=str(final_path),
            hint="free some disk space, then `tarazu resume`; the previous checkpoint is intact",
        ) from error
    # 5. Remove old checkpoints last, when the new one is safe.
    for old in _newest_first(folder)[KEEP:]:
        shutil.rmtree(old, ignore_errors=True)


def load(folder: Path) -> tuple[TensorGroups, dict[str, Any], list[str]] | None:
    """Read the newest intact checkpoint.

    Args:
        folder: where the checkpoints of the run are.

    Returns:
        The tensor groups (any shapes, on the CPU), the state, and a message for each newer
        checkpoint that is damaged. None if there is no checkpoint.

    Raises:
        TarazuError: there are checkpoints, and all are damaged.
    """
    damaged = []
    for path in _newest_first(folder):
        try:
            return (*_read(path), damaged)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
            damaged.append(f"{path.name} is damaged ({error}); the checkpoint before it is used")
    if damaged:
        raise TarazuError(
            "; ".join(damaged),
            location=str(folder),
            hint="no checkpoint is intact: remove this method's folder and run again",
        )
    return None


def _serialize(tensors: TensorGroups, state: dict[str, Any]) -> dict[str, bytes]:
    """The files of a checkpoint by name; the manifest comes last."""
    files = {}
    for group_name, group in tensors.items():
        on_cpu = {name: t.detach().contiguous().cpu() for name, t in group.items()}
        files[f"{group_name}.safetensors"] = tensor_bytes(on_cpu)
    files["state.json"] = json.dumps(replace_nonfinite(state), allow_nan=False).encode()
    manifest = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    files["manifest.json"] = json.dumps(manifest).encode()
    return files


def _read(path: Path) -> tuple[TensorGroups, dict[str, Any]]:
    """Read one checkpoint and compare every file with the manifest."""
    manifest = json.loads((path / "manifest.json").read_bytes())
    tensors, state = {}, None
    for name, expected_hash in manifest.items():
        data = (path / name).read_bytes()
        if hashlib.sha256(data).hexdigest() != expected_hash:
            raise ValueError(f"{name} does not match its sha256")
        if name == "state.json":
            state = json.loads(data)
        else:
            tensors[name.removesuffix(".safetensors")] = load_tensors(data)
    if state is None:
        raise ValueError("no state.json")
    return tensors, state


def _newest_first(folder: Path) -> list[Path]:
    """Complete checkpoints, newest first."""
    folders = (path for path in folder.glob("step-*") if path.is_dir())
    return sorted((p for p in folders if not p.name.endswith(TEMP_SUFFIX)), reverse=True)


def _write_flushed(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
