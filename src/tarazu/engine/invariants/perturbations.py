"""Small, reversible changes of a model under test: rounding made visible, gradients captured.

Captured CUDA graphs do not see a hook that is added after the capture, nor a new dropout
probability. So each context that changes a module invalidates all graphs when it begins and when it
ends.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from tarazu.engine import dropout
from tarazu.engine.cuda_graphs import recorder
from tarazu.engine.subset_task import SimulatedCrash
from tarazu.engine.trainable import TrainableModel


@contextlib.contextmanager
def graphs_invalidated() -> Iterator[None]:
    """Discard all captured CUDA graphs before the context and after it."""
    recorder.invalidate_all()
    try:
        yield
    finally:
        recorder.invalidate_all()


@contextlib.contextmanager
def without_dropout(module: nn.Module) -> Iterator[None]:
    """`dropout.without_dropout`, also for modules whose passes are captured in CUDA graphs."""
    with graphs_invalidated(), dropout.without_dropout(module):
        yield


@contextlib.contextmanager
def embeddings_perturbed(module: nn.Module, unit: float) -> Iterator[None]:
    """Multiply every embedding's output by 1 + `unit` or 1 - `unit`.

    The sign depends only on the channel, so that every call perturbs the same way.

    Args:
        module: the model under test; its embeddings give (..., C).
        unit: relative size of the perturbation; 0 changes nothing.
    """

    def perturb(_module: nn.Module, _inputs: tuple, output: torch.Tensor) -> torch.Tensor:
        # Knuth's multiplicative hash of the channel number, reduced to -1 or 1.
        channels = torch.arange(output.shape[-1], device=output.device)
        signs = (channels * 2654435761 % 7 % 2) * 2 - 1
        return (output * (1 + unit * signs.to(torch.float64))).to(output.dtype)

    embeddings = [layer for layer in module.modules() if isinstance(layer, nn.Embedding)]
    with graphs_invalidated():
        handles = [layer.register_forward_hook(perturb) for layer in embeddings if unit]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


@contextlib.contextmanager
def capture_gradients(model: TrainableModel) -> Iterator[dict[str, torch.Tensor]]:
    """Record the gradients that the first optimizer step gets, then end the training.

    The optimizer neither steps nor saves.

    Yields:
        Gradients on the CPU by parameter name, in the parameters' shapes; filled when the context
        ends.

    Raises:
        SimulatedCrash: ends the training inside. This context catches it.
    """
    gradients: dict[str, torch.Tensor] = {}

    def record_and_stop(_optimizer: torch.optim.Optimizer, _args: tuple, _kwargs: dict) -> None:
        for name, parameter in model.trainable().items():
            if parameter.grad is not None:
                gradients[name] = parameter.grad.detach().cpu().clone()
        raise SimulatedCrash

    handle = register_optimizer_step_pre_hook(record_and_stop)
    try:
        with contextlib.suppress(SimulatedCrash):
            yield gradients
    finally:
        handle.remove()
        for parameter in model.trainable().values():
            parameter.grad = None


@torch.no_grad()
def shake(model: TrainableModel, seed: int = 0) -> None:
    """Add noise of 2% of their own size to the trainable parameters.

    Adapters start as zero: unperturbed, they would take no part in any check.
    """
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.trainable().values():
        scale = float(parameter.float().square().mean().sqrt()) * 0.02 or 0.005
        noise = torch.randn(parameter.shape, generator=generator) * scale
        parameter.add_(noise.to(parameter))
