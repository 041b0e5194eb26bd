"""A task cut down to a few training rows, for `verify` and the estimate."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from tarazu.engine import trainer
from tarazu.engine.ledger import Ledger
from tarazu.engine.progress import CONSOLE
from tarazu.engine.signals import StopSignals
from tarazu.engine.task import Data, Task
from tarazu.engine.trainable import Batch, LossSum, TrainableModel
from tarazu.recipe.schema import Method, Recipe
from tarazu.storage.run_folder import RunDir, StudyDir


class SimulatedCrash(Exception):
    """Ends a training where a real crash could."""


class SubsetTask(Task):
    """A task on some rows of its training split. It is its own data.

    Its validation is the loss of the first row. It gives no sample outputs.

    Args:
        task: the real task.
        data: the real task's data.
        rows: indices of training rows.
        crash_after: raise `SimulatedCrash` after this many training batches, also within a step.
            None means never.
    """

    name = "subset"

    def __init__(self, task: Task, data: Data, rows: list[int], crash_after: int | None = None):
        self.task, self.data, self.rows = task, data, rows
        self.batches_left = crash_after

    def size(self, split: str) -> int:
        """Number of rows, in every split."""
        return len(self.rows)

    def prepare(self, recipe: Any, folder: StudyDir, device: torch.device) -> SubsetTask:
        return self

    def build(
        self,
        recipe: Any,
        name: str,
        data: Any,
        seed: int,
        device: torch.device,
        folder: StudyDir | None = None,
    ) -> TrainableModel:
        return self.task.build(recipe, name, self.data, seed, device, folder)

    def group_size(self, method: Any, data: Any) -> int:
        return self.task.group_size(method, self.data)

    def collate(
        self, model: TrainableModel, data: Any, split: str, rows: list[int], limit: int
    ) -> list[Batch]:
        return self.task.collate(model, self.data, "train", [self.rows[i] for i in rows], limit)

    def loss(self, model: TrainableModel, batch: Batch) -> LossSum:
        """The real task's loss.

        Raises:
            SimulatedCrash: `crash_after` batches were trained.
        """
        if model.module.training and self.batches_left is not None:
            if self.batches_left == 0:
                raise SimulatedCrash
            self.batches_left -= 1
        return self.task.loss(model, batch)

    def validate(self, model: TrainableModel, data: Any, recipe: Any) -> dict[str, float]:
        return {"loss": self.mean_loss(model, [0], 1)}

    def evaluate(
        self, model: TrainableModel, data: Any, recipe: Any, folder: Path, ledger: Ledger
    ) -> dict[str, Any]:
        return {}

    def weights(self, model: TrainableModel) -> dict[str, torch.Tensor]:
        return self.task.weights(model)

    def mean_loss(self, model: TrainableModel, rows: list[int], limit: int) -> float:
        """Mean loss per supervised token, in the module's current mode.

        Args:
            model: the model.
            rows: positions in `self.rows`.
            limit: maximum tokens in a batch.
        """
        device = next(model.module.parameters()).device
        losses = [
            self.task.loss(model, batch.to(device))
            for batch in self.collate(model, self, "train", rows, limit)
        ]
        total = float(sum(loss.total.double() for loss in losses))
        return total / max(1, sum(loss.count for loss in losses))


def train_subset(
    subset: SubsetTask,
    model: TrainableModel,
    recipe: Recipe,
    method: Method,
    run: RunDir,
    ledger: Ledger,
) -> RunDir:
    """Train on the subset with the real training loop, without output on the terminal.

    Args:
        subset: the task with its rows.
        model: trained in place.
        recipe: its budget is the length of the training.
        method: the method's settings.
        run: a folder for the run's files; its seed is the seed of the training.
        ledger: measures the training.

    Returns:
        The run's folder.

    Raises:
        SimulatedCrash: `crash_after` batches were trained.
        TarazuError: as `trainer.train`.
    """
    stop = StopSignals(str(run.path))
    with silence():
        trainer.train(subset, model, subset, recipe, method, run, run.seed, ledger, stop)
    return run


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """No progress bars and log lines inside."""
    was_quiet, CONSOLE.quiet = CONSOLE.quiet, True
    try:
        yield
    finally:
        CONSOLE.quiet = was_quiet
