"""Small, reversible interventions in a module: rounding made visible, chance switched off, gradients caught."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from tarazu.engine.cuda_graphs import recorder
from tarazu.engine.subset_task import SimulatedCrash
from tarazu.engine.task import TrainableModel

DROPOUT_ATTRIBUTES = (
    "dropout",
    "attention_dropout",
    "module_dropout",
    "rank_dropout",
)  # where layers keep a chance for themselves


@contextlib.contextmanager
def embeddings_perturbed(module: nn.Module, unit: float) -> Iterator[None]:
    """Every embedding's output is moved up or down by `unit`, relatively, the same way each time; 0: nothing happens."""

    def move(_module, _inputs, out: torch.Tensor) -> torch.Tensor:
        signs = (torch.arange(out.shape[-1], device=out.device) * 2654435761 % 7 % 2) * 2 - 1
        return (out * (1 + unit * signs.to(torch.float64))).to(out.dtype)

    handles = [
        m.register_forward_hook(move)
        for m in module.modules()
        if isinstance(m, nn.Embedding) and unit
    ]
    recorder.invalidate_all()
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        recorder.invalidate_all()


@contextlib.contextmanager
def capture_gradients(model: TrainableModel) -> Iterator[dict[str, torch.Tensor]]:
    """The gradients that the optimizer's first step is given, by name. The training inside ends there, unstepped and unsaved."""
    caught: dict[str, torch.Tensor] = {}

    def keep(_optimizer, _args, _kwargs) -> None:
        caught.update(
            {
                name: p.grad.detach().cpu().clone()
                for name, p in model.trainable().items()
                if p.grad is not None
            }
        )
        raise SimulatedCrash

    handle = register_optimizer_step_pre_hook(keep)
    try:
        with contextlib.suppress(SimulatedCrash):
            yield caught
    finally:
        handle.remove()
        for parameter in model.trainable().values():
            parameter.grad = None


@contextlib.contextmanager
def without_dropout(module: nn.Module) -> Iterator[None]:
    """All chance off, though the module trains: dropout layers, and the shares that other layers keep."""
    changed = []
    for part in module.modules():
        for key in ("p",) if isinstance(part, nn.Dropout) else DROPOUT_ATTRIBUTES:
            value = getattr(part, key, None)
            if isinstance(value, (float, dict)):
                changed.append((part, key, value))
                setattr(part, key, dict.fromkeys(value, 0.0) if isinstance(value, dict) else 0.0)
    recorder.invalidate_all()
    try:
        yield
    finally:
        for part, key, value in changed:
            setattr(part, key, value)
        recorder.invalidate_all()


def uses_dropout(module: nn.Module) -> bool:
    """Whether chance has a part in the module's training: a dropout layer, or a share that another layer keeps."""
    for part in module.modules():
        for key in ("p",) if isinstance(part, nn.Dropout) else DROPOUT_ATTRIBUTES:
            value = getattr(part, key, None)
            if (
                isinstance(value, float)
                and value
                or isinstance(value, dict)
                and any(value.values())
            ):
                return True
    return False


@torch.no_grad()
def shake(model: TrainableModel, seed: int = 0) -> None:
    """Moves what is trained off its start, so that adapters which begin as nothing take part in every check."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.trainable().values():
        size = float(parameter.float().square().mean().sqrt()) * 0.02 or 0.005
        parameter.add_((torch.randn(parameter.shape, generator=generator) * size).to(parameter))


@torch.no_grad()
def put(model: TrainableModel, tensors: dict[str, torch.Tensor]) -> None:
    """The trained tensors as they were."""
    for name, parameter in model.trainable().items():
        parameter.copy_(tensors[name])
