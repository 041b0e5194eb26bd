"""Read a file of weights, .safetensors or PyTorch's .pth, without running code from it.

A .pth file is a pickle, and a pickle is a program. `torch.load(weights_only=True)` builds tensors
and plain containers only, and refuses to call anything else. This is the one place that reads a
pickle.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor

from tarazu.errors import UserError


def read_weights(path: Path) -> tuple[dict[str, Tensor], str]:
    """Read a state dict.

    Args:
        path: a .safetensors or .pth file.

    Returns:
        Tensors of any shape by name, on the CPU, and the file's SHA-256.

    Raises:
        UserError: the file cannot be read, or holds anything but tensors by name.
    """
    try:
        data = path.read_bytes()
        is_safetensors = path.suffix == ".safetensors"
        weights = load_safetensors(data) if is_safetensors else _load_pth(data, path)
    except OSError as error:
        raise UserError(
            f"cannot be read: {error.strerror}",
            location=str(path),
            hint="set encoder.file to the weights",
        ) from None
    except SafetensorError as error:
        raise UserError(f"not a safetensors file: {error}", location=str(path)) from None
    return weights, hashlib.sha256(data).hexdigest()


def _load_pth(data: bytes, path: Path) -> dict[str, Tensor]:
    file = io.BytesIO(data)
    try:
        weights = torch.load(file, map_location="cpu", weights_only=True)
        if not isinstance(weights, dict) or not all(
            isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in weights.items()
        ):
            raise ValueError("not a dictionary of tensors")
    except Exception as error:  # a damaged file raises almost anything
        reason = (str(error).splitlines() or [repr(error)])[0]
        raise UserError(
            f"not a plain state dict: {reason}",
            location=str(path),
            hint="only tensors by name are read; save it as .safetensors",
        ) from None
    return {name: tensor.detach() for name, tensor in weights.items()}
