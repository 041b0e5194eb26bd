"""The order of training rows.

It is a function of the seed alone, so that every method sees the same rows at the same step.
"""

from __future__ import annotations

import numpy as np

from tarazu.engine.task import Data, Task
from tarazu.recipe.schema import Budget, Method


class RowSampler:
    """Shuffled passes over the rows, without end. The last step of an epoch may be short.

    The state of the sampler is the number of finished steps: a resumed run needs nothing else.

    Args:
        rows: number of rows.
        per_step: rows in an optimizer step.
        seed: seed of all shuffles; each epoch has its own.
        group_size: this many neighbouring rows stay adjacent in every shuffle, for example the
            captions of an image, which is then encoded once.
    """

    def __init__(self, rows: int, per_step: int, seed: int, group_size: int = 1):
        self.rows, self.per_step = rows, per_step
        self.seed, self.group_size = seed, group_size
        self.steps_per_epoch = -(-rows // per_step)  # rounded up
        self._epoch = -1  # the epoch whose order is cached
        self._order = np.empty(0, dtype=np.int64)

    def rows_of_step(self, step: int) -> list[int]:
        """Row indices of one optimizer step; steps are counted from 0."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._shuffle(epoch)
        start = step_in_epoch * self.per_step
        return self._order[start : start + self.per_step].tolist()

    def epoch(self, step: int) -> float:
        """Passes over the rows that are finished after `step` steps, as a fraction."""
        full_epochs, step_in_epoch = divmod(step, self.steps_per_epoch)
        return full_epochs + step_in_epoch * self.per_step / self.rows

    def _shuffle(self, epoch: int) -> np.ndarray:
        """The order of one epoch, (rows,)."""
        rng = np.random.default_rng([self.seed, epoch])
        if self.group_size == 1:
            return rng.permutation(self.rows)
        # Shuffle the groups, then replace each by its rows. The last group may be short.
        num_groups = -(-self.rows // self.group_size)
        first_rows = rng.permutation(num_groups) * self.group_size
        order = (first_rows[:, None] + np.arange(self.group_size)).ravel()
        return order[order < self.rows]


def make_row_sampler(
    task: Task, data: Data, method: Method, budget: Budget, seed: int
) -> RowSampler:
    """The sampler of a method's training rows."""
    per_step = method.batch_rows or budget.batch_rows
    return RowSampler(data.size("train"), per_step, seed, task.group_size(method, data))


def inverse_shuffle(rows: list[int], sampler: RowSampler) -> list[int]:
    """Rearrange `rows` so that the first epoch of `sampler` visits them in the given order.

    Args:
        rows: as many values as the sampler has rows.
        sampler: the sampler that will be used.

    Returns:
        A list with `[result[i] for i in the sampler's first epoch] == rows`.
    """
    result = [0] * len(rows)
    steps = range(sampler.steps_per_epoch)
    positions = (position for step in steps for position in sampler.rows_of_step(step))
    for row, position in zip(rows, positions, strict=True):
        result[position] = row
    return result
