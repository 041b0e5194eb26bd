"""A dry run of training: a few real steps, from which the time and memory of the whole run follow.

An optimizer step has one or several passes (micro-batches). On a GPU a pass of a new width is
captured as a CUDA graph, which takes as long as about ten steps. Each captured graph holds memory,
and capturing a wider pass after a narrower one adds to the total. So the dry run also runs those
steps of the real run in which a shape occurs for the first time, in the run's own order. It does so
for several seeds, because the seed decides which rows a step has.
"""

from __future__ import annotations

import gc
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from tarazu.engine.cost import TaskCost
from tarazu.engine.ledger import Ledger
from tarazu.engine.row_sampler import RowSampler, inverse_shuffle, make_row_sampler
from tarazu.engine.subset_task import SubsetTask, train_subset
from tarazu.engine.task import Task
from tarazu.engine.trainable import TrainableModel
from tarazu.recipe.schema import NO_VALIDATION, Budget, Recipe
from tarazu.storage.run_folder import RunDir

# Steps that are timed. A GPU's steps are short, and its first ones are slower than the others.
STEPS = {"cpu": 3, "cuda": 12}
# Rounds over the timed steps; only the last is timed. On a GPU the first plans and compiles.
ROUNDS = {"cpu": 1, "cuda": 2}
# Seeds with a dry run of their own; further seeds are taken to cost what the first does.
MAX_SEEDS = 3
MAX_SHAPE_STEPS = 200  # steps that are searched for new shapes; later ones are rare
MAX_WEIGHED_STEPS = 1000  # how many steps are searched for the heaviest

TrainOnRows = Callable[[list[int], Path, Ledger], RunDir]


@dataclass(frozen=True)
class Warmup:
    """Cost of the first passes of a run.

    Args:
        extra_seconds: how much longer these passes take the first time than later.
        peak_memory: peak memory in bytes.
        new_shape_steps: the steps that have a pass of a new shape.
    """

    extra_seconds: float
    peak_memory: int
    new_shape_steps: tuple[int, ...] = ()


@dataclass(frozen=True)
class TrainingTiming:
    """Time, memory and disk of one method's training.

    Args:
        warmups: by seed; the recipe's first seed comes first.
        num_steps: optimizer steps of the whole budget.
        step_seconds: seconds of a warm step.
        tokens_per_step: mean tokens in a step.
        checkpoint_seconds: seconds of one checkpoint.
        disk_bytes: bytes of weights, checkpoints and logged steps.
    """

    warmups: dict[int, Warmup]
    num_steps: int
    step_seconds: float
    tokens_per_step: float
    checkpoint_seconds: float
    disk_bytes: int

    @property
    def first(self) -> Warmup:
        """The warm-up with the recipe's first seed."""
        return next(iter(self.warmups.values()))

    def train_seconds(self, warmup: Warmup) -> float:
        """Seconds of all steps of the budget."""
        return self.num_steps * self.step_seconds + warmup.extra_seconds

    def tokens_per_second(self, warmup: Warmup) -> float:
        """Tokens per second over the whole run."""
        return self.num_steps * self.tokens_per_step / self.train_seconds(warmup)

    def warmup_seconds(self, steps: int) -> float:
        """The part of the warm-up that falls into the first `steps` steps; all of it if unknown."""
        warmup = self.first
        if not warmup.new_shape_steps:
            return warmup.extra_seconds
        early = sum(step < steps for step in warmup.new_shape_steps)
        return warmup.extra_seconds * early / len(warmup.new_shape_steps)


def dry_run(
    task: Task,
    recipe: Recipe,
    name: str,
    data: Any,
    model: TrainableModel,
    scratch: Path,
    ledger: Ledger,
) -> TrainingTiming:
    """Train a few steps of one method and time them.

    If passes of a new shape cost extra, begin with the steps that bring new shapes, for each seed.
    Otherwise begin with the heaviest step, for its memory. Then time the first steps of the first
    seed.

    Args:
        task: the recipe's task.
        recipe: the recipe.
        name: the method.
        data: the prepared data.
        model: the method's model, newly built. It is trained here.
        scratch: an empty folder for checkpoints.
        ledger: gives the device; where no shapes are new, it also records the heaviest step.
    """
    cost, method, device = task.cost, recipe.methods[name], ledger.device
    train: TrainOnRows = partial(train_on_rows, task, recipe, name, data, model)
    samplers = {
        seed: make_row_sampler(task, data, method, recipe.budget, seed)
        for seed in recipe.seeds[:MAX_SEEDS]
    }
    sampler = samplers[recipe.seeds[0]]
    heaviest = cost.with_longest_row(data, heaviest_step(data, sampler, cost))

    # 1. The first passes.
    new_shapes: dict[int, NewShapes] = {}
    if cost.has_shapes and ROUNDS[device.type] > 1:  # on a GPU
        new_shapes = find_new_shapes(cost, recipe, data, model, samplers)
    if new_shapes:
        # The process pays some costs once, such as loading kernels. They belong to no method.
        train(sampler.rows_of_step(0), scratch / "once", Ledger(device))
    warmups = {}
    for seed, (steps, complete) in new_shapes.items():
        rows = [row for step in steps for row in samplers[seed].rows_of_step(step)]
        if not complete:  # a later step may be heavier than those that were searched
            rows += heaviest
        cost.reset(model)  # forget what the seed before has captured
        warmups[seed] = time_warmup(train, rows, steps, scratch / str(seed), ledger)
    if not warmups:
        train(heaviest, scratch / "heaviest", ledger)

    # 2. The timed steps.
    first_rows = [row for step in range(STEPS[device.type]) for row in sampler.rows_of_step(step)]
    rounds = [Ledger(device) for _ in range(1 if warmups else ROUNDS[device.type])]
    for number, round_ledger in enumerate(rounds):
        last_run = train(first_rows, scratch / f"steps-{number}", round_ledger)
    warm = rounds[-1]
    if not warmups:
        extra_seconds = extra_over_last_round([one.seconds["train"] for one in rounds])
        peak = max(peak_bytes(one) for one in (ledger, *rounds))
        warmups = {recipe.seeds[0]: Warmup(extra_seconds, peak)}

    # 3. The whole budget.
    tokens_per_step = warm.counts.tokens / warm.steps
    num_steps = training_steps(recipe.budget, sampler, tokens_per_step)
    return TrainingTiming(
        warmups=warmups,
        num_steps=num_steps,
        step_seconds=seconds_per_step(last_run, warm),
        tokens_per_step=tokens_per_step,
        checkpoint_seconds=warm.seconds["checkpoint"],
        disk_bytes=max_disk_bytes(last_run, recipe.budget, num_steps),
    )


def time_warmup(
    train: TrainOnRows, rows: list[int], steps: tuple[int, ...], scratch: Path, ledger: Ledger
) -> Warmup:
    """Train twice on the same rows: the difference is the warm-up.

    Args:
        train: trains on rows, in a folder, and fills a ledger.
        rows: the rows of all `steps`, and of the heaviest step, unless all steps were searched.
        steps: the steps that have a pass of a new shape.
        scratch: an empty folder.
        ledger: has the device.
    """
    gc.collect()
    rounds = [Ledger(ledger.device), Ledger(ledger.device)]
    for number, round_ledger in enumerate(rounds):
        train(rows, scratch / f"new-{number}", round_ledger)
    extra_seconds = extra_over_last_round([one.seconds["train"] for one in rounds])
    return Warmup(extra_seconds, max(map(peak_bytes, rounds)), steps)


class NewShapes(NamedTuple):
    """The steps that have a pass of a new shape, and whether the whole run was searched."""

    steps: tuple[int, ...]
    complete: bool


def find_new_shapes(
    cost: TaskCost,
    recipe: Recipe,
    data: Any,
    model: TrainableModel,
    samplers: dict[int, RowSampler],
) -> dict[int, NewShapes]:
    """The steps that have a pass of a new shape, by seed; empty if there is no such step."""
    shapes = partial(cost.pass_shapes, model, data, recipe)
    by_seed = {}
    for seed, sampler in samplers.items():
        steps, complete = steps_to_inspect(sampler, recipe.budget, partial(cost.row_weight, data))
        by_seed[seed] = NewShapes(first_step_of_each_shape(sampler, shapes, steps), complete)
    return by_seed if any(found.steps for found in by_seed.values()) else {}


def first_step_of_each_shape(
    sampler: RowSampler, shapes: Callable[[list[int]], set[int]], steps: int
) -> tuple[int, ...]:
    """The steps among the first `steps` that have a pass of a shape that no earlier step had.

    Args:
        sampler: the order of rows.
        shapes: gives the widths of the passes over the given rows.
        steps: how many steps to search.
    """
    seen: set[int] = set()
    new_steps = []
    for step in range(steps):
        rows = sampler.rows_of_step(step)
        new = shapes(rows) - seen
        # The dry run has steps of full size only, so it cannot take an epoch's short last step.
        if new and len(rows) == sampler.per_step:
            seen |= new
            new_steps.append(step)
    return tuple(new_steps)


def steps_to_inspect(
    sampler: RowSampler, budget: Budget, row_weight: Callable[[list[int]], int]
) -> tuple[int, bool]:
    """How many of a run's first steps to search for new shapes.

    Args:
        sampler: the order of rows.
        budget: the run's budget.
        row_weight: the tokens of rows.

    Returns:
        The number of steps, and whether that is the whole run.
    """
    limit = min(MAX_SHAPE_STEPS, sampler.steps_per_epoch)
    if budget.epochs:
        steps = math.ceil(budget.epochs * sampler.steps_per_epoch)
        return min(limit, steps), steps <= limit
    tokens = 0
    for step in range(limit):
        tokens += row_weight(sampler.rows_of_step(step))
        if tokens >= (budget.tokens or 0):
            return step + 1, True
    return limit, False


def train_on_rows(
    task: Task,
    recipe: Recipe,
    name: str,
    data: Any,
    model: TrainableModel,
    rows: list[int],
    folder: Path,
    ledger: Ledger,
) -> RunDir:
    """Train once on the given rows in their order; returns the run's folder, under `folder`."""
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
    subset = SubsetTask(task, data, rows)
    # The loop shuffles its rows. Order them so that the shuffle returns them as given, because
    # other rows in a step would give other shapes. `subset` is both the task and its data.
    sampler = make_row_sampler(subset, subset, method, budget, seed)
    subset.rows = inverse_shuffle(rows, sampler)
    recipe = recipe.model_copy(update={"budget": budget})
    run_dir = RunDir(folder / name / f"seed-{seed}")
    return train_subset(subset, model, recipe, method, run_dir, ledger)


def max_disk_bytes(run: RunDir, budget: Budget, num_steps: float) -> int:
    """Peak bytes on disk of a whole run: two checkpoints, the weights, and a line for each step.

    Args:
        run: a short run, whose files are measured.
        budget: the budget; with `keep: best` the weights exist twice.
        num_steps: steps of the whole run.
    """
    checkpoint = next(path for path in (run.path / "checkpoint").iterdir() if path.is_dir())
    checkpoint_bytes = sum(file.stat().st_size for file in checkpoint.iterdir())  # all are alike
    weights_bytes = run.weights.stat().st_size * (2 if budget.keep == "best" else 1)
    lines = (run.path / "events.jsonl").read_bytes().splitlines(keepends=True)
    line_bytes = statistics.fmean(len(line) for line in lines if b'"event": "step"' in line)
    return round(2 * checkpoint_bytes + weights_bytes + line_bytes * num_steps)


def training_steps(budget: Budget, sampler: RowSampler, tokens_per_step: float) -> int:
    """Optimizer steps of the whole budget."""
    if budget.epochs:
        return math.ceil(budget.epochs * sampler.steps_per_epoch)
    return math.ceil((budget.tokens or 0) / tokens_per_step)


def seconds_per_step(run: RunDir, ledger: Ledger) -> float:
    """Seconds of a warm optimizer step.

    On a CPU the mean of all steps. On a GPU the mean of those after the first third, without steps
    that took more than twice the median: they compile or capture, which a run does once.
    """
    if ledger.device.type == "cpu":
        return ledger.seconds["train"] / ledger.steps
    events = run.read_jsonl("events.jsonl")
    seconds = [event["seconds"] for event in events if event["event"] == "step"]
    seconds = seconds[len(seconds) // 3 :]
    limit = 2 * statistics.median(seconds)
    return statistics.fmean(step for step in seconds if step <= limit)


def heaviest_step(data: Any, sampler: RowSampler, cost: TaskCost) -> list[int]:
    """The rows of the step with the most tokens among the first ones: it sets the peak memory."""
    if not cost.rows_differ:
        return sampler.rows_of_step(0)
    steps = range(min(MAX_WEIGHED_STEPS, sampler.steps_per_epoch))
    return max(map(sampler.rows_of_step, steps), key=partial(cost.row_weight, data))


def extra_over_last_round(rounds: Sequence[float]) -> float:
    """Extra seconds of the first rounds of the same steps, compared with the last round."""
    return sum(max(0.0, seconds - rounds[-1]) for seconds in rounds[:-1])


def peak_bytes(ledger: Ledger) -> int:
    """Peak memory of training, in bytes: of the GPU, or else of the process."""
    return ledger.memory["allocated"] or ledger.memory["resident"] or 0
