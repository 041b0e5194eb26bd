"""A task cut down to a few rows of its training split: what verifying and estimating train on, in a folder of their own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from tarazu.engine import trainer
from tarazu.engine.ledger import Ledger
from tarazu.engine.progress import CONSOLE
from tarazu.engine.signals import StopSignals
from tarazu.engine.task import Batch, Data, LossSum, Task, Trainee
from tarazu.recipe.schema import Method, Recipe
from tarazu.storage.run_folder import Run


class Cut(Exception):
    """What stands in for a crash."""


class Few:
    """A task, and its own data, of the given rows; validation is the loss of the first row, and nothing is sampled.

    `cut_after`: training batches after which `Cut` is raised, mid-step or not; None: never.
    """

    def __init__(self, task: Task, data: Data, rows: list[int], cut_after: int | None = None):
        self.task, self.data, self.rows, self.left = task, data, rows, cut_after

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)

    def size(self, split: str) -> int:
        return len(self.rows)

    def collate(self, trainee: Trainee, data: Data, split: str, rows: list[int], limit: int) -> list[Batch]:
        return self.task.collate(trainee, self.data, "train", [self.rows[i] for i in rows], limit)

    def loss(self, trainee: Trainee, batch: Batch) -> LossSum:
        if trainee.module.training and self.left is not None:
            if self.left == 0:
                raise Cut
            self.left -= 1
        return self.task.loss(trainee, batch)

    def validate(self, trainee: Trainee, data: Data, recipe: Recipe) -> dict[str, float]:
        return {"loss": self.mean_loss(trainee, [0], 1)}

    def mean_loss(self, trainee: Trainee, rows: list[int], limit: int) -> float:
        """Mean loss per supervised token of some of the rows, in the module's current mode."""
        device = next(trainee.module.parameters()).device
        sums = [
            self.task.loss(trainee, batch.to(device)) for batch in self.collate(trainee, self, "train", rows, limit)
        ]
        return float(sum(s.total.double() for s in sums)) / max(1, sum(s.count for s in sums))

    def sample(self, trainee: Trainee, data: Data, recipe: Recipe, final: bool) -> list[dict]:
        return []


def fit(few: Few, trainee: Trainee, recipe: Recipe, method: Method, run: Run, ledger: Ledger) -> Run:
    """The real training loop over the few rows, without a word on the terminal. Raises what `loop.fit` raises, and `Cut`."""
    with silence():
        trainer.fit(few, trainee, few, recipe, method, run, run.seed, ledger, StopSignals(str(run.path)))
    return run


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """No bars and notes inside."""
    before, CONSOLE.quiet = CONSOLE.quiet, True
    try:
        yield
    finally:
        CONSOLE.quiet = before
