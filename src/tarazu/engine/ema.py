"""The mean of the weights over the last steps: calmer than any single step's, and slower to overfit.

    average <- d average + (1 - d) weights,   d = min(`average`, (1 + step) / (10 + step))

Polyak and Juditsky 1992, as an exponential mean; the smaller d at the start lets it forget the initialisation. Training
itself never sees it: it is what is validated, kept and evaluated.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from tarazu.engine.trainable import TrainableModel


class ExponentialMovingAverage:
    """The running mean of a model's trainable tensors, in float32 at least.

    Args:
        decay: the largest share of the old mean that a step keeps; about 1 / (1 - decay) steps are in it.
    """

    def __init__(self, model: TrainableModel, decay: float):
        self.decay, self.parameters = decay, model.trainable()
        self.begin()

    def begin(self) -> None:
        """The mean is what the weights are now."""
        self.mean = {name: _wide(p).clone() for name, p in self.parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes in the weights after the `step`-th step, counted from 1."""
        keep = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(
            list(self.mean.values()), [_wide(p) for p in self.parameters.values()], 1 - keep
        )

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The module holds the mean inside, and its own weights again, bit by bit, afterwards."""
        own = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.put(self.mean)
        try:
            yield
        finally:
            self.put(own)

    @torch.no_grad()
    def put(self, tensors: dict[str, torch.Tensor]) -> None:
        """Copies tensors into the module."""
        for name, parameter in self.parameters.items():
            parameter.copy_(tensors[name])

    @torch.no_grad()
    def restore(self, tensors: dict[str, torch.Tensor]) -> None:
        """The mean as a checkpoint kept it."""
        for name, mean in self.mean.items():
            mean.copy_(tensors[name])


def _wide(parameter: torch.Tensor) -> torch.Tensor:
    return parameter.detach().float() if parameter.itemsize < 4 else parameter.detach()
