"""Exponential moving average of the weights: less noisy than one step, and slower to overfit.

    average <- d * average + (1 - d) * weights,    d = min(decay, (1 + step) / (10 + step))

Averaging of iterates is due to Polyak and Juditsky 1992. The smaller d of the first steps, as in
TensorFlow's `ExponentialMovingAverage`, forgets the initialisation sooner. Training does not see
the average; validation, evaluation and the saved weights use it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from tarazu.engine import weights
from tarazu.engine.trainable import TrainableModel


class ExponentialMovingAverage:
    """The moving average of a model's trainable parameters, in float32 or wider.

    Args:
        model: the model that is trained.
        decay: largest d of the formula; about 1 / (1 - decay) steps contribute.
    """

    def __init__(self, model: TrainableModel, decay: float):
        self.model, self.decay = model, decay
        self.parameters = model.trainable()
        self.reset()

    def reset(self) -> None:
        """Start again from the current weights."""
        self.mean = {name: _at_least_float32(p).clone() for name, p in self.parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Add the current weights to the average.

        Args:
            step: number of finished optimizer steps, from 1.
        """
        decay = min(self.decay, (1 + step) / (10 + step))
        current = [_at_least_float32(p) for p in self.parameters.values()]
        torch._foreach_lerp_(list(self.mean.values()), current, 1 - decay)

    def copy_to_model(self) -> None:
        """Replace the model's weights by the average."""
        weights.restore(self.model, self.mean)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Inside, the model holds the average; afterwards its own weights again, bit by bit."""
        own = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.copy_to_model()
        try:
            yield
        finally:
            weights.restore(self.model, own)

    @torch.no_grad()
    def load(self, mean: dict[str, torch.Tensor]) -> None:
        """Take the average from a checkpoint: tensors by name, in the shapes of the parameters."""
        for name, own_mean in self.mean.items():
            own_mean.copy_(mean[name])


def _at_least_float32(parameter: torch.Tensor) -> torch.Tensor:
    return parameter.detach().float() if parameter.itemsize < 4 else parameter.detach()
