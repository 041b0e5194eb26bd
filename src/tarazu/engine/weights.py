"""A run's trained tensors on disk: `weights.safetensors`, and beside it their sha256, which every reading checks.

A flipped bit in a tensor is still a valid safetensors file; only the hash tells. The file `weights.sha256` has the form of
`sha256sum`, so that `sha256sum -c weights.sha256` checks it without tarazu.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as tensor_bytes

from tarazu.engine.trainable import TrainableModel
from tarazu.errors import TarazuError, UserError
from tarazu.storage.atomic_io import write_atomic
from tarazu.storage.run_folder import RunDir


def write(run: RunDir, tensors: dict[str, torch.Tensor]) -> None:
    """Both files, each atomically. Raises `TarazuError` when the disk refuses."""
    data = tensor_bytes({name: tensor.detach().contiguous() for name, tensor in tensors.items()})
    run.weights_hash.unlink(
        missing_ok=True
    )  # cut off between the two, the weights stand without a hash, not with a wrong one
    write_atomic(run.weights, data)
    write_atomic(
        run.weights_hash, f"{hashlib.sha256(data).hexdigest()}  {run.weights.name}\n".encode()
    )


def read(run: RunDir) -> dict[str, torch.Tensor]:
    """The tensors by name, on the CPU. Raises `UserError` where they are not what was written.

    A folder of an earlier version has no hash; its weights are taken as they are.
    """
    if run.weights_hash.exists() and _told(run.weights_hash) != _sha256(run.weights):
        raise _damaged(run, "their sha256 is not the one that was written with them")
    try:
        return load_file(run.weights)
    except SafetensorError as error:
        raise _damaged(run, f"no safetensors file: {str(error).strip().splitlines()[0]}") from error


def restore(model: TrainableModel, tensors: dict[str, torch.Tensor]) -> None:
    """Copies saved tensors into the module, by name. Raises `TarazuError` when a name or shape does not fit."""
    own = {**dict(model.module.named_parameters()), **dict(model.module.named_buffers())}
    missing = model.trainable_names - set(tensors)
    strange = [
        name
        for name, tensor in tensors.items()
        if name not in own or own[name].shape != tensor.shape
    ]
    if missing or strange:
        raise TarazuError(
            f"saved weights do not fit: missing {sorted(missing)[:3]}, not fitting {strange[:3]}"
        )
    with torch.no_grad():
        for name, tensor in tensors.items():
            own[name].copy_(tensor)


def _damaged(run: RunDir, why: str) -> UserError:
    return UserError(
        f"the weights of {run.path.parent} (seed {run.seed}) are damaged: {why}",
        location=str(run.weights),
        hint=f"bring {run.path} back from a copy, or remove it: `tarazu resume {run.path.parent.parent}` then trains this run again",
    )


def _told(path: Path) -> str:
    return path.read_bytes().decode("ascii", "replace").partition(" ")[0].strip()


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
