"""A run's training rehearsed: a few of its real steps, from which the whole is multiplied out.

On a GPU a packed width's pass is recorded when it first comes (`engine.recording`). That takes as long as ten steps, and what is
recorded keeps its memory, more of it the more often a wider one follows a narrower one. So the steps of a run that bring a new shape
are taken here as well, in that run's own order, for each seed: which rows come when is a function of the seed alone.
"""

from __future__ import annotations

import gc
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from tarazu.engine.cost import TaskCost
from tarazu.engine.ledger import Ledger
from tarazu.engine.row_sampler import RowSampler, inverse_shuffle, make_row_sampler
from tarazu.engine.subset_task import SubsetTask, fit
from tarazu.engine.trainable import TrainableModel
from tarazu.recipe.schema import Budget, Recipe
from tarazu.storage.run_folder import RunDir

STEPS = {
    "cpu": 3,
    "cuda": 12,
}  # on a GPU a step is short, and the first ones are not like the others
WARMUP_ROUNDS = {"cpu": 1, "cuda": 2}  # there the first pass is planned and compiled
SEEDS = 3  # whose beginnings are rehearsed: others are taken to be like the first
SHAPES_LOOKED_AT = (
    200  # steps whose passes are laid out to see which shapes come: what comes later is rare
)
LOOKED_AT = 1000  # steps among which the heaviest one is looked for
NO_VALIDATION = 10**12  # tokens between validations


@dataclass(frozen=True)
class Warmup:
    """What the first passes of a run took.

    `lost`: seconds beyond what the same passes take later; `memory`: the peak, in bytes; `new`: the steps that brought a new shape.
    """

    lost: float
    memory: int
    new: tuple[int, ...] = ()


@dataclass(frozen=True)
class TrainingTiming:
    """What a few real steps tell of a method's training."""

    starts: dict[int, Warmup]  # by seed, the recipe's first one first
    steps: float  # of the whole budget
    each: float  # seconds of a step, which holds `held` tokens
    held: float
    checkpoint: float  # seconds of the few steps' checkpoints
    disk: int  # bytes of weights, checkpoints and the steps' events

    @property
    def first(self) -> Warmup:
        return next(iter(self.starts.values()))

    def train(self, start: Warmup) -> float:
        """Seconds of the whole budget's steps."""
        return self.steps * self.each + start.lost

    def speed(self, start: Warmup) -> float:
        """Tokens a second over the whole run."""
        return self.steps * self.held / self.train(start)

    def lost(self, steps: int) -> float:
        """Seconds that the first passes among the run's first `steps` steps take beyond what they take later."""
        start = self.first
        return (
            start.lost * sum(step < steps for step in start.new) / len(start.new)
            if start.new
            else start.lost
        )


def dry_run(
    task, recipe: Recipe, name: str, data, model: TrainableModel, scratch: Path, ledger: Ledger
) -> TrainingTiming:
    """The first passes of every seed's run, and then the steps that the first seed's run begins with.

    Where no shapes are known to come anew, the heaviest step is taken for its memory, and the first steps more than once.
    """
    cost, method, device = task.cost, recipe.methods[name], ledger.device
    few = partial(train_on_rows, task, recipe, name, data, model)
    orders = {
        seed: make_row_sampler(data, method, recipe.budget, seed) for seed in recipe.seeds[:SEEDS]
    }
    first = next(iter(orders.values()))
    heaviest = cost.with_longest_row(data, heaviest_step(data, first, cost))
    begin = [row for step in range(STEPS[device.type]) for row in first.rows_of_step(step)]
    new = (
        new_shapes(cost, recipe, data, model, orders)
        if cost.has_shapes and WARMUP_ROUNDS[device.type] > 1
        else {}
    )
    if new:  # what a process pays once, as for loading kernels, belongs to no method
        few(first.rows_of_step(0), scratch / "once", Ledger(device))
    starts = {
        seed: time_warmup(
            few,
            cost,
            model,
            orders[seed],
            steps,
            [] if whole else heaviest,
            scratch / str(seed),
            device,
        )
        for seed, (steps, whole) in new.items()
    }
    if not starts:
        few(heaviest, scratch / "heaviest", ledger)
    ledgers = [Ledger(device) for _ in range(1 if starts else WARMUP_ROUNDS[device.type])]
    for number, one in enumerate(ledgers):
        run = few(begin, scratch / f"steps-{number}", one)
    warm, each = ledgers[-1], seconds_per_step(run, ledgers[-1])
    starts = starts or {
        recipe.seeds[0]: Warmup(
            warmup_seconds([one.seconds["train"] for one in ledgers]),
            max(peak_bytes(one) for one in (ledger, *ledgers)),
        )
    }
    held = warm.counts.tokens / warm.steps
    steps = training_steps(recipe.budget, first, held)
    return TrainingTiming(
        starts,
        steps,
        each,
        held,
        warm.seconds["checkpoint"],
        max_disk_bytes(run, recipe.budget, steps),
    )


def time_warmup(
    few: Callable,
    cost: TaskCost,
    model: TrainableModel,
    order: RowSampler,
    new: tuple[int, ...],
    heaviest: list[int],
    scratch: Path,
    device: torch.device,
) -> Warmup:
    """The steps that bring a new shape, as a newly built model meets them, and the same once more."""
    cost.reset(model)
    gc.collect()
    rows = [row for step in new for row in order.rows_of_step(step)] + heaviest
    ledgers = [Ledger(device), Ledger(device)]
    for number, ledger in enumerate(ledgers):
        few(rows, scratch / f"new-{number}", ledger)
    return Warmup(
        warmup_seconds([ledger.seconds["train"] for ledger in ledgers]),
        max(map(peak_bytes, ledgers)),
        new,
    )


def new_shapes(
    cost: TaskCost, recipe: Recipe, data, model: TrainableModel, orders: dict[int, RowSampler]
) -> dict[int, tuple[tuple[int, ...], bool]]:
    """By seed, the steps that bring a new shape, and whether all of the run was looked at; empty where no seed has such a step."""
    shapes, found = partial(cost.pass_shapes, model, data, recipe), {}
    for seed, order in orders.items():
        steps, whole = steps_to_inspect(order, recipe.budget, partial(cost.row_weight, data))
        found[seed] = first_step_of_each_shape(order, shapes, steps), whole
    return found if any(steps for steps, _ in found.values()) else {}


def first_step_of_each_shape(
    order: RowSampler, shapes: Callable[[list[int]], set], steps: int
) -> tuple[int, ...]:
    """Which of the first `steps` steps hold a pass of a shape that none before it had.

    Args:
        shapes: of rows, the shapes that are planned or recorded when they first come.
    """
    met, new = set(), []
    for step in range(steps):
        rows = order.rows_of_step(step)
        found = shapes(rows) - met
        if (
            found and len(rows) == order.per_step
        ):  # an epoch's last, short step could not stand among the others
            met |= found
            new.append(step)
    return tuple(new)


def steps_to_inspect(
    order: RowSampler, budget: Budget, weigh: Callable[[list[int]], int]
) -> tuple[int, bool]:
    """How many of a run's steps are laid out, and whether these are all. `weigh`: the tokens of rows."""
    most = min(SHAPES_LOOKED_AT, order.steps_per_epoch)
    if budget.epochs:
        steps = math.ceil(budget.epochs * order.steps_per_epoch)
        return min(most, steps), steps <= most
    spent = 0
    for step in range(most):
        spent += weigh(order.rows_of_step(step))
        if spent >= budget.tokens:
            return step + 1, True
    return most, False


def train_on_rows(
    task,
    recipe: Recipe,
    name: str,
    data,
    model: TrainableModel,
    rows: list[int],
    where: Path,
    ledger: Ledger,
) -> RunDir:
    """One pass of the real loop over the rows as they stand, in steps of the method's own size, without validations between."""
    method, seed = recipe.methods[name], recipe.seeds[0]
    changes = {
        "tokens": None,
        "epochs": 1.0,
        "batch_rows": method.batch_rows or recipe.budget.batch_rows,
        "evaluate_every": NO_VALIDATION,
        "keep": "last",
        "patience": None,
        "monitor": "loss",
    }
    budget = recipe.budget.model_copy(update=changes)
    few = SubsetTask(task, data, rows)
    few.rows = inverse_shuffle(
        rows, make_row_sampler(few, method, budget, seed)
    )  # a step of other rows would have other shapes than the run's
    return fit(
        few,
        model,
        recipe.model_copy(update={"budget": budget}),
        method,
        RunDir(where / name / f"seed-{seed}"),
        ledger,
    )


def max_disk_bytes(run: RunDir, budget: Budget, steps: float) -> int:
    """The most bytes of a whole run's tensors and steps, told by a short one: two checkpoints, the weights, and a line for each step."""
    checkpoints = [folder for folder in (run.path / "checkpoint").iterdir() if folder.is_dir()]
    size, weights = (
        sum(file.stat().st_size for file in checkpoints[-1].iterdir()),
        run.weights.stat().st_size,
    )
    lines = [
        line
        for line in (run.path / "events.jsonl").read_bytes().splitlines(keepends=True)
        if b'"event": "step"' in line
    ]
    return round(
        2 * size
        + weights * (2 if budget.keep == "best" else 1)
        + statistics.fmean(map(len, lines)) * steps
    )


def training_steps(budget: Budget, order: RowSampler, held: float) -> int:
    """Optimizer steps of the whole budget; for a budget in tokens, by what a step held here."""
    return (
        math.ceil(budget.epochs * order.steps_per_epoch)
        if budget.epochs
        else math.ceil(budget.tokens / held)
    )


def seconds_per_step(run: RunDir, warm: Ledger) -> float:
    """Seconds of a step: of all steps on a CPU, on a GPU of those after the first third.

    Steps that took twice the median are left out there: what is compiled or recorded once must not be multiplied by the steps of a run.
    """
    if warm.device.type == "cpu":
        return warm.seconds["train"] / warm.steps
    seconds = [
        event["seconds"] for event in run.read_jsonl("events.jsonl") if event["event"] == "step"
    ]
    seconds = seconds[len(seconds) // 3 :]
    most = 2 * statistics.median(seconds)
    return statistics.fmean(one for one in seconds if one <= most)


def heaviest_step(data, order: RowSampler, cost: TaskCost) -> list[int]:
    """The rows of the step that holds the most, of the run's first ones: what its peak of memory comes from."""
    if not cost.rows_differ:
        return order.rows_of_step(0)
    return max(
        (order.rows_of_step(step) for step in range(min(LOOKED_AT, order.steps_per_epoch))),
        key=lambda rows: cost.row_weight(data, rows),
    )


def warmup_seconds(rounds: list[float]) -> float:
    """Seconds that a newly built method loses until its passes are what they stay: the same steps' earlier rounds beside the last."""
    return sum(max(0.0, seconds - rounds[-1]) for seconds in rounds[:-1])


def peak_bytes(ledger: Ledger) -> int:
    """Bytes, while it trained."""
    return ledger.memory["allocated"] or ledger.memory["resident"]
