"""Mixed precision: which number format a forward pass computes in."""

from __future__ import annotations

import contextlib

import torch

from tarazu.recipe.schema import Budget


def uses_bfloat16(budget: Budget, device: torch.device) -> bool:
    """Whether a forward pass computes in bfloat16; `auto` means on a GPU that supports it."""
    if budget.precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported()
    return budget.precision == "bfloat16"


def autocast(
    budget: Budget, device: torch.device
) -> contextlib.AbstractContextManager[torch.autocast | None]:
    """The context of a forward pass: bfloat16 autocast where `uses_bfloat16`, else nothing."""
    if uses_bfloat16(budget, device):
        return torch.autocast(device.type, torch.bfloat16)
    return contextlib.nullcontext()
