"""What the engine trains: a module, the names that may change, its batches and losses."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch

from tarazu.engine.counts import TokenCounts


class Batch(Protocol):
    """The rows of one forward pass."""

    counts: TokenCounts

    def to(self, device: torch.device) -> Batch:
        """The same batch on `device`."""
        ...


@dataclass
class LossSum:
    """A summed loss, exact under any batching and any number of processes.

    Args:
        total: summed loss of `count` tokens, scalar. The engine divides by the count of the whole
            step.
        count: supervised tokens in the sum.
        penalty: an optional summed penalty, scalar (for example doubly stochastic attention). It is
            trained on and not reported as the loss.
    """

    total: torch.Tensor
    count: int
    penalty: torch.Tensor | None = None


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters with a learning rate of their own.

    Args:
        names: names of the parameters in the module.
        learning_rate: peak learning rate of the group.
        from_epoch: the group is frozen before this epoch (fine-tuning that starts late).
        until_epoch: the group is frozen again from this epoch on.
    """

    names: frozenset[str]
    learning_rate: float
    from_epoch: int = 0
    until_epoch: int | None = None


@dataclass(frozen=True)
class TrainingPhase:
    """A part of a run with its own warm-up and decay, for example a reward after cross-entropy.

    Args:
        from_epoch: first epoch of the phase.
        factor: multiplies every peak learning rate in the phase.
        from_best: start from the best weights so far (their average if the budget keeps no best).
    """

    from_epoch: int
    factor: float
    from_best: bool = False


@dataclass
class TrainableModel:
    """A module, and the exact names of the tensors that training may change.

    Args:
        module: everything that is fingerprinted, in the state of step 0.
        trainable_names: names as in `named_parameters()`. Every other parameter has
            `requires_grad=False`. Empty for an untrained method.
        learning_rate: peak learning rate of every parameter that no group names.
        groups: parameters with a learning rate of their own.
        phases: parts of the run whose schedule starts again.
        fraction: part of the budget that is done, 0 to 1; the engine writes it before each step.
        epoch: current epoch; after training, the epoch of the kept weights.
    """

    module: torch.nn.Module
    trainable_names: frozenset[str]
    learning_rate: float = 0.0
    groups: list[ParameterGroup] = field(default_factory=list)
    phases: list[TrainingPhase] = field(default_factory=list)
    fraction: float = 0.0
    epoch: int = 0

    def trainable(self) -> dict[str, torch.nn.Parameter]:
        """The trainable parameters by name, in the module's order."""
        named = self.module.named_parameters()
        return {name: parameter for name, parameter in named if name in self.trainable_names}

    def total_parameters(self) -> int:
        """Number of parameters of the module, trainable or not."""
        return sum(parameter.numel() for parameter in self.module.parameters())

    def not_yet_trained(self) -> frozenset[str]:
        """Parameters of groups that start after the epoch of the kept weights."""
        late = (group.names for group in self.groups if group.from_epoch > self.epoch)
        return frozenset().union(*late)
