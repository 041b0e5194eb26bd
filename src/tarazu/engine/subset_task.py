"""A task cut down to a few rows of its training split: what verifying and estimating train on, in a folder of their own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from tarazu.engine import trainer
from tarazu.engine.ledger import Ledger
from tarazu.engine.progress import CONSOLE
from tarazu.engine.signals import StopSignals
from tarazu.engine.task import Data, Task
from tarazu.engine.trainable import Batch, LossSum, TrainableModel
from tarazu.recipe.schema import Method, Recipe
from tarazu.storage.run_folder import RunDir


class SimulatedCrash(Exception):
    """What stands in for a crash."""


class SubsetTask:
    """A task, and its own data, of the given rows; validation is the loss of the first row, and nothing is sampled.

    `cut_after`: training batches after which `Cut` is raised, mid-step or not; None: never.
    """

    def __init__(self, task: Task, data: Data, rows: list[int], cut_after: int | None = None):
        self.task, self.data, self.rows, self.left = task, data, rows, cut_after

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)

    def size(self, split: str) -> int:
        return len(self.rows)

    def collate(
        self, model: TrainableModel, data: Data, split: str, rows: list[int], limit: int
    ) -> list[Batch]:
        return self.task.collate(model, self.data, "train", [self.rows[i] for i in rows], limit)

    def loss(self, model: TrainableModel, batch: Batch) -> LossSum:
        if model.module.training and self.left is not None:
            if self.left == 0:
                raise SimulatedCrash
            self.left -= 1
        return self.task.loss(model, batch)

    def validate(self, model: TrainableModel, data: Data, recipe: Recipe) -> dict[str, float]:
        return {"loss": self.mean_loss(model, [0], 1)}

    def mean_loss(self, model: TrainableModel, rows: list[int], limit: int) -> float:
        """Mean loss per supervised token of some of the rows, in the module's current mode."""
        device = next(model.module.parameters()).device
        sums = [
            self.task.loss(model, batch.to(device))
            for batch in self.collate(model, self, "train", rows, limit)
        ]
        return float(sum(s.total.double() for s in sums)) / max(1, sum(s.count for s in sums))

    def sample(self, model: TrainableModel, data: Data, recipe: Recipe, final: bool) -> list[dict]:
        return []


def fit(
    few: SubsetTask,
    model: TrainableModel,
    recipe: Recipe,
    method: Method,
    run: RunDir,
    ledger: Ledger,
) -> RunDir:
    """The real training loop over the few rows, without a word on the terminal. Raises what `loop.fit` raises, and `Cut`."""
    with silence():
        trainer.train(
            few, model, few, recipe, method, run, run.seed, ledger, StopSignals(str(run.path))
        )
    return run


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """No bars and notes inside."""
    before, CONSOLE.quiet = CONSOLE.quiet, True
    try:
        yield
    finally:
        CONSOLE.quiet = before
