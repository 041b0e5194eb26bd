"""The order of rows: a function of the seed alone, so that every method sees the same rows at the same step."""

from __future__ import annotations

import numpy as np

from tarazu.engine.task import Data
from tarazu.recipe.schema import Budget, Method


class RowSampler:
    """Endless passes over `rows` rows, shuffled anew each epoch, in steps of `per_step`; the last step may be short.

    The position is one number, the steps taken: that is all a resumed run needs. `together`: so many neighbours stay side
    by side in every order (an image's captions, which then share one look at it).
    """

    def __init__(self, rows: int, per_step: int, seed: int, together: int = 1):
        self.rows, self.per_step, self.seed, self.together = rows, per_step, seed, together
        self.steps_per_epoch = -(-rows // per_step)
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def rows_of_step(self, step: int) -> list[int]:
        """The rows of the `step`-th step, counted from 0."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._shuffled(epoch)
        return self._order[place * self.per_step : (place + 1) * self.per_step].tolist()

    def epoch(self, step: int) -> float:
        """Passes finished after `step` steps."""
        whole, place = divmod(step, self.steps_per_epoch)
        return whole + place * self.per_step / self.rows

    def _shuffled(self, epoch: int) -> np.ndarray:
        dice = np.random.default_rng([self.seed, epoch])
        if self.together == 1:
            return dice.permutation(self.rows)
        firsts = dice.permutation(-(-self.rows // self.together)) * self.together
        rows = (firsts[:, None] + np.arange(self.together)).ravel()
        return rows[rows < self.rows]


def make_row_sampler(data: Data, method: Method, budget: Budget, seed: int) -> RowSampler:
    """That of a method's training rows."""
    together = getattr(method, "together", None) or getattr(data, "together", 1)
    return RowSampler(data.size("train"), method.batch_rows or budget.batch_rows, seed, together)


def inverse_shuffle(rows: list[int], order: RowSampler) -> list[int]:
    """The rows laid out so that the shuffle of `order`, which is over as many, brings them back in the order that they have here."""
    out = [0] * len(rows)
    places = (place for step in range(order.steps_per_epoch) for place in order.rows_of_step(step))
    for row, place in zip(rows, places, strict=True):
        out[place] = row
    return out
