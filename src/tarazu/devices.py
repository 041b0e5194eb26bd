"""The device that a recipe runs on."""

from __future__ import annotations

import gc

import torch

from tarazu.errors import UserError
from tarazu.recipe.schema import Recipe


def pick_device(recipe: Recipe) -> torch.device:
    """The recipe's device; `auto` takes a GPU where there is one.

    Raises:
        UserError: the name is unknown, or this machine has no such device.
    """
    if recipe.device == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(recipe.device)
    except RuntimeError:
        raise UserError(
            f"unknown device {recipe.device!r}", location="device", hint="auto, cpu, cuda or cuda:N"
        ) from None
    if device.type != "cuda":
        return device
    if not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"this machine has no usable device {recipe.device}",
            location="device",
            hint="device: auto, or cpu",
        )
    if device.index:
        torch.cuda.set_device(device)  # streams and events are created on the current device
    return device if device.index is not None else torch.device("cuda:0")


def free_memory(device: torch.device) -> None:
    """Return unused memory to the device.

    Models have reference cycles, so the garbage collector runs first.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
