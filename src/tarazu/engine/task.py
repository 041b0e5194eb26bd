"""The contract between the engine and a task: what `chat` and `captions` bring, and all that the engine knows of them.

The engine owns the order of rows, the steps, the optimizer, the clock, the files and the proof. A task owns the data,
the model and the loss. A third task is one new folder with these functions in it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from tarazu.engine.ledger import Ledger
    from tarazu.storage.run_folder import StudyDir


@dataclass(frozen=True)
class TokenCounts:
    """What a batch holds, in tokens (words for captions): the ledger adds these up."""

    rows: int = 0
    tokens: int = (
        0  # real tokens of the rows; the budget counts these, so it is the same for every method
    )
    supervised: int = 0  # tokens under the loss
    padding: int = 0
    virtual: int = 0  # soft-prompt positions

    def __add__(self, other: TokenCounts) -> TokenCounts:
        return TokenCounts(*(a + b for a, b in zip(self.as_tuple(), other.as_tuple(), strict=True)))

    def as_tuple(self) -> tuple[int, ...]:
        return (self.rows, self.tokens, self.supervised, self.padding, self.virtual)


class Batch(Protocol):
    """One forward pass's worth of rows."""

    counts: TokenCounts

    def to(self, device: torch.device) -> Batch: ...


@dataclass
class LossSum:
    """A loss that adds up exactly under any batching or world size.

    `total` is the summed loss of `count` tokens; the engine divides by the count of the whole step. `extra` is an optional
    penalty that is summed likewise (a doubly stochastic term, say): trained on, but not reported as the loss.
    """

    total: torch.Tensor
    count: int
    extra: torch.Tensor | None = None


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters with a learning rate of their own, frozen until an epoch (fine-tuning that starts late) and, where
    `until_epoch` is given, from that one on again."""

    names: frozenset[str]
    learning_rate: float
    from_epoch: int = 0
    until_epoch: int | None = None


@dataclass(frozen=True)
class TrainingPhase:
    """A part of a run with a schedule of its own: warm-up and decay begin anew, at `factor` times every peak rate; with
    `from_best` from the best weights so far, or from their mean where the budget keeps no best ones."""

    from_epoch: int
    factor: float
    from_best: bool = False


@dataclass
class TrainableModel:
    """A module, and exactly what may change in it.

    Args:
        module: everything that is fingerprinted, in the state that step 0 sees.
        may_change: the names, as in `module.named_parameters()` and `named_buffers()`, that training may change.
            Parameters outside it have `requires_grad` False. Must not be empty for a trained method.
        learning_rate: the peak learning rate of every parameter that no group names.
        groups: parameters with their own rate.
        phases: parts of the run, in order, whose schedule begins anew (another objective from an epoch on).
        fraction, epoch: written by the engine before each step; after training, `epoch` is that of the kept weights.
    """

    module: torch.nn.Module
    may_change: frozenset[str]
    learning_rate: float = 0.0
    groups: list[ParameterGroup] = field(default_factory=list)
    phases: list[TrainingPhase] = field(default_factory=list)
    fraction: float = 0.0
    epoch: int = 0

    def trainable(self) -> dict[str, torch.nn.Parameter]:
        """The parameters under `may_change`, by name, in the module's order."""
        return {name: p for name, p in self.module.named_parameters() if name in self.may_change}

    def total_parameters(self) -> int:
        """All of the module's parameters, trained or not."""
        return sum(p.numel() for p in self.module.parameters())

    def waiting(self) -> frozenset[str]:
        """Parameters of groups that had not begun at the weights' epoch: these may stand still."""
        return frozenset().union(
            *(group.names for group in self.groups if group.from_epoch > self.epoch)
        )


class Data(Protocol):
    """Prepared data: rows are addressed by split and index."""

    def size(self, split: str) -> int: ...


class Task(Protocol):
    """What a task does for the engine. All state that a method needs lives in its `TrainableModel`."""

    name: str

    def admit(self, recipe: Any) -> None:
        """Raises `BadInput` for a method that the rest of the recipe rules out, before a study reads or trains anything."""

    def prepare(self, recipe: Any, folder: StudyDir, device: torch.device) -> Data:
        """Read, check, split, tokenise or extract once; cache by hash; write `data.json` (with its `sha256`)."""

    def build(
        self,
        recipe: Any,
        name: str,
        data: Data,
        seed: int,
        device: torch.device,
        folder: StudyDir | None = None,
    ) -> TrainableModel:
        """The module of one method of the recipe, freshly initialised from `seed`, on `device`; writes `model.json` once."""

    def collate(
        self, model: TrainableModel, data: Data, split: str, rows: list[int], limit: int
    ) -> list[Batch]:
        """The given rows as batches of at most `limit` tokens each (a longer row stands alone). Runs in a thread."""

    def loss(self, model: TrainableModel, batch: Batch) -> LossSum:
        """Forward pass of one batch, in the module's current train or eval mode."""

    def validate(self, model: TrainableModel, data: Data, recipe: Any) -> dict[str, float]:
        """What is measured every `evaluate_every`; always has `loss`. Called in eval mode without gradients."""

    def sample(self, model: TrainableModel, data: Data, recipe: Any, final: bool) -> list[dict]:
        """Outputs for the fixed questions or images: a few during training, all of them when `final`."""

    def evaluate(
        self, model: TrainableModel, data: Data, recipe: Any, folder: Path, ledger: Ledger
    ) -> dict:
        """The full evaluation on the test split, after training; what it returns becomes `metrics.json`."""

    def summary(self, metrics: dict) -> dict[str, Any]:
        """The figures of one run's `metrics.json` that the comparison table shows, flat."""

    def weights(self, model: TrainableModel) -> dict[str, torch.Tensor]:
        """The tensors that training changed, by name: what is saved and loaded back."""

    def paths(self, model: TrainableModel, data: Data) -> dict[str, str]:
        """Which of several code paths ran, for the ledger."""

    def targets(self, model: TrainableModel) -> list[dict]:
        """Name and shape of the trained tensors, for `run.json`."""
