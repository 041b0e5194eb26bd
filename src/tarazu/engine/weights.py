"""A run's trained tensors on disk: `weights.safetensors` and its hash in `weights.sha256`.

A flipped bit in a tensor is still a valid safetensors file, so every read compares the hash. The
hash file has the format of `sha256sum`: `sha256sum -c weights.sha256` checks it without tarazu.
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
    """Write both files, each atomically.

    Args:
        run: the run's folder.
        tensors: tensors of any shape by name.

    Raises:
        TarazuError: the disk refuses.
    """
    data = tensor_bytes({name: tensor.detach().contiguous() for name, tensor in tensors.items()})
    # Remove the old hash first: a crash between the two writes leaves weights without a hash, not
    # weights with a wrong one.
    run.weights_hash.unlink(missing_ok=True)
    write_atomic(run.weights, data)
    line = f"{hashlib.sha256(data).hexdigest()}  {run.weights.name}\n"
    write_atomic(run.weights_hash, line.encode())


def read(run: RunDir) -> dict[str, torch.Tensor]:
    """Read the tensors of a run, of any shape, by name, on the CPU.

    Folders of early versions have no hash file; their weights are read unchecked.

    Raises:
        UserError: the file does not match its hash or is not a safetensors file.
    """
    if run.weights_hash.exists() and _written_hash(run.weights_hash) != _sha256(run.weights):
        raise _damaged(run, "they do not match the sha256 that was written with them")
    try:
        return load_file(run.weights)
    except SafetensorError as error:
        reason = str(error).strip().splitlines()[0]
        raise _damaged(run, f"not a safetensors file: {reason}") from error


@torch.no_grad()
def restore(model: TrainableModel, tensors: dict[str, torch.Tensor]) -> None:
    """Copy tensors into the model's parameters and buffers, in place.

    Args:
        model: the model. Its tensors keep their addresses, which captured CUDA graphs need.
        tensors: tensors by name; at least the trainable ones, in the shapes of the model.

    Raises:
        TarazuError: a trainable tensor is missing, or a name or shape is unknown to the model.
    """
    own = {**dict(model.module.named_parameters()), **dict(model.module.named_buffers())}
    missing = sorted(model.trainable_names - set(tensors))
    unknown = [
        name
        for name, tensor in tensors.items()
        if name not in own or own[name].shape != tensor.shape
    ]
    if missing or unknown:
        raise TarazuError(
            f"saved weights do not fit the model: missing {missing[:3]}, not fitting {unknown[:3]}"
        )
    for name, tensor in tensors.items():
        own[name].copy_(tensor)


def _damaged(run: RunDir, reason: str) -> UserError:
    study = run.path.parent.parent
    return UserError(
        f"the weights of {run.path.parent} (seed {run.seed}) are damaged: {reason}",
        location=str(run.weights),
        hint=f"restore {run.path} from a backup, or remove it: "
        f"`tarazu resume {study}` then trains this run again",
    )


def _written_hash(path: Path) -> str:
    return path.read_bytes().decode("ascii", "replace").partition(" ")[0].strip()


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
