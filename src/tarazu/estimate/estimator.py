"""The estimate of a recipe: what works here, and the time, memory and disk of every method.

Measured: a throwaway model of each method takes a few real steps and generates a few real answers,
and the rest is multiplied out. Predicted: nothing is loaded; see `cost_model.py`.
"""

from __future__ import annotations

import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from tarazu import tasks
from tarazu.devices import free_memory
from tarazu.engine import fingerprint, successive_halving
from tarazu.engine.ledger import Ledger
from tarazu.engine.out_of_memory import is_out_of_memory
from tarazu.engine.precision import autocast
from tarazu.engine.progress import log
from tarazu.engine.subset_task import silence
from tarazu.engine.task import Task
from tarazu.engine.trainable import TrainableModel
from tarazu.engine.trainer import SAVE_SECONDS
from tarazu.errors import TarazuError
from tarazu.estimate.cost_model import MODEL_ERRORS, NOT_PREDICTED, first_line, predict
from tarazu.estimate.dry_run import STEPS, TrainingTiming, dry_run
from tarazu.recipe.schema import Budget, Recipe

Entry = dict[str, Any]  # the estimate of one method


def estimate_study(
    recipe: Recipe,
    data: Any,
    device: torch.device,
    measure: bool = True,
    on: str | None = None,
) -> dict[str, Any]:
    """Estimate every method of a recipe.

    Args:
        recipe: the recipe.
        data: the prepared data.
        device: the device of this machine.
        measure: take steps here; otherwise predict from the model's shape.
        on: a device of `cost_model.DEVICES` to predict for, instead of this machine's.

    Returns:
        One entry for each method, and the total over methods and seeds: the contents of
        estimate.json.

    Raises:
        UserError: there is no device `on`.
    """
    task = tasks.make_task(recipe.task)
    entries = []
    for name, method in recipe.methods.items():
        entry = predict(task, recipe, name, data, device, on)
        skip_reason = task.cost.skip_reason(recipe, name)
        if skip_reason:
            entry["notes"] = [skip_reason]
        elif measure and entry["works"]:
            log(f"{name}: measuring {STEPS[device.type]} steps")
            entry = measure_method(task, recipe, name, data, device, entry)
        entry["notes"] = [*entry["notes"], *widening_notes(recipe, name)]
        entries.append({"method": name, "kind": method.kind, **entry})
    return {
        "device": on or str(device),
        "how": "measured" if measure else "predicted",
        "methods": entries,
        "total": study_total(recipe, entries),
    }


def study_total(recipe: Recipe, entries: Iterable[Entry]) -> dict[str, Any]:
    """[min, max] of seconds and of bytes on disk, over all methods and seeds.

    The base model runs once. A method's search runs once and serves all seeds.
    """
    seconds, disk, count = [0.0, 0.0], [0, 0], 0
    for entry in entries:
        if not entry["works"] or not entry["range"]:
            continue
        seeds = recipe.seeds[:1] if entry["kind"] == "base" else recipe.seeds
        method_seconds = seconds_for_seeds(entry, seeds)
        for side in (0, 1):
            seconds[side] += method_seconds[side]
            disk[side] += len(seeds) * entry["range"]["disk"][side]
        count += 1
    return {"seconds": seconds, "disk": disk, "methods": count}


def seconds_for_seeds(entry: Entry, seeds: Sequence[int]) -> list[float]:
    """[min, max] seconds of a method's runs with these seeds."""
    low, high = entry["range"]["seconds"]
    if entry["how"] != "measured":
        return [low * len(seeds), high * len(seeds)]
    phases, by_seed = entry["seconds"], entry.get("by_seed", {})
    train = phases.get("train", 0.0)
    # The first seed has the search. The others have their own training time, where it was measured.
    without_search = phases["total"] - phases.get("search", 0.0)
    others = sum(
        without_search - train + by_seed.get(str(seed), {}).get("train", train)
        for seed in seeds[1:]
    )
    return [low + others, high + others]


def measure_method(
    task: Task, recipe: Recipe, name: str, data: Any, device: torch.device, entry: Entry
) -> Entry:
    """Measure one method by a few real steps.

    Args:
        task: the recipe's task.
        recipe: the recipe.
        name: the method.
        data: the prepared data.
        device: where to measure.
        entry: the method's predicted entry.

    Returns:
        The entry with the measured numbers, or with the reason why the method does not work.
    """
    try:
        with tempfile.TemporaryDirectory() as scratch, silence():
            measured = _measure(task, recipe, name, data, device, Path(scratch))
        notes = [note for note in entry["notes"] if note != NOT_PREDICTED]
        return {**entry, "notes": notes, **measured}
    except MODEL_ERRORS as error:
        reasons = [*entry["reasons"], describe_failure(error)]
        return {**entry, "works": False, "reasons": reasons, "seconds": None}
    finally:
        free_memory(device)


def describe_failure(error: Exception) -> str:
    """Why a method does not work here, in one line."""
    if isinstance(error, TarazuError):
        return error.message
    if is_out_of_memory(error):
        return f"does not fit into memory: {first_line(error)}"
    return f"fails with this model and attention: {type(error).__name__}: {first_line(error)}"


def _measure(
    task: Task, recipe: Recipe, name: str, data: Any, device: torch.device, scratch: Path
) -> Entry:
    """The measured part of a method's entry."""
    ledger = Ledger(device)
    with ledger.phase("load"):
        model = task.build(recipe, name, data, recipe.seeds[0], device)
    seconds = {"load": ledger.seconds["load"]}
    validations = count_validations(recipe.budget) if model.trainable_names else 0
    timing: TrainingTiming | None = None
    if model.trainable_names:
        started = time.perf_counter()
        fingerprint.fingerprint(model.module)
        seconds["fingerprint"] = 2 * (time.perf_counter() - started)  # before and after training
        timing = dry_run(task, recipe, name, data, model, scratch, ledger)
        seconds["train"] = timing.train_seconds(timing.first)
        checkpoints = validations - 1 + seconds["train"] // SAVE_SECONDS
        seconds["checkpoint"] = timing.checkpoint_seconds * checkpoints
    model.module.eval()
    with torch.no_grad(), autocast(recipe.budget, device):
        phases = task.cost.phase_seconds(model, data, recipe)
        if phases is None:
            phases = time_phases(task, model, data, recipe)
    widening = 0.0
    if timing:
        seconds["validate"] = validations * phases["validate"]
    seconds["generate"] = phases["generate"] + validations * phases["sample"]
    seconds["evaluate"] = phases["evaluate"]
    if timing:
        search, widening = search_seconds(
            recipe,
            name,
            build_seconds=seconds["load"],
            step_seconds=timing.step_seconds,
            tokens_per_step=timing.tokens_per_step,
            trial_overhead=phases["validate"] + timing.checkpoint_seconds,
            warmup_seconds=timing.warmup_seconds,
        )
        seconds |= search
    total = sum(seconds.values())
    disk = timing.disk_bytes if timing else 0
    disk += task.cost.answer_bytes(data, recipe, validations)
    return {
        "how": "measured",
        "seconds": {**seconds, "total": total},
        "disk": disk,
        **training_summary(timing),
        "range": measured_ranges(timing, total, widening, disk),
    }


def time_phases(task: Task, model: TrainableModel, data: Any, recipe: Recipe) -> dict[str, float]:
    """Seconds of one validation, of its samples, and of the evaluation.

    This is for tasks that do not know them. The evaluation is one validation, scaled by the sizes
    of the splits.
    """
    started = time.perf_counter()
    task.validate(model, data, recipe)
    validate = time.perf_counter() - started
    started = time.perf_counter()
    task.sample(model, data, recipe, final=False)
    sample = time.perf_counter() - started
    evaluate = validate * data.size("test") / max(1, data.size("validation"))
    return {"validate": validate, "sample": sample, "evaluate": evaluate, "generate": 0.0}


def training_summary(timing: TrainingTiming | None) -> Entry:
    """Speed and peak memory of the first seed's training; with several seeds also of each."""
    if timing is None:
        return {"tokens_per_second": None, "memory": None}
    summary: Entry = {
        "tokens_per_second": timing.tokens_per_second(timing.first),
        "memory": timing.first.peak_memory,
    }
    if len(timing.warmups) > 1:
        summary["by_seed"] = {
            str(seed): {
                "train": timing.train_seconds(warmup),
                "tokens_per_second": timing.tokens_per_second(warmup),
                "memory": warmup.peak_memory,
            }
            for seed, warmup in timing.warmups.items()
        }
    return summary


def measured_ranges(
    timing: TrainingTiming | None, total: float, widening: float, disk: int
) -> dict[str, list[Any]]:
    """[min, max] of the first seed's seconds and disk, and of the memory of all seeds."""
    peaks = [warmup.peak_memory for warmup in timing.warmups.values()] if timing else []
    return {
        "seconds": [total, total + widening],
        "disk": [disk, disk],
        "memory": [min(peaks), max(peaks)] if peaks else [None, None],
    }


def count_validations(budget: Budget) -> int:
    """The validations of a run: before the first step, when due, and at the end."""
    if budget.tokens:
        interval = budget.evaluate_every or max(1, budget.tokens // 10)
        return 1 + math.ceil(budget.tokens / interval)
    # A budget in epochs usually validates after each; `evaluate_every` in tokens is rare with it.
    return 1 + math.ceil(budget.epochs or 0)


def search_seconds(
    recipe: Recipe,
    name: str,
    build_seconds: float,
    step_seconds: float,
    tokens_per_step: float,
    trial_overhead: float,
    warmup_seconds: Callable[[int], float] = lambda steps: 0.0,
) -> tuple[dict[str, float], float]:
    """Time of a method's search.

    Args:
        recipe: the recipe.
        name: the method.
        build_seconds: seconds of building the model.
        step_seconds: seconds of a warm optimizer step.
        tokens_per_step: mean tokens in an optimizer step.
        trial_overhead: seconds of a trial besides its steps.
        warmup_seconds: extra seconds of first passes among a number of steps.

    Returns:
        The phase `search` and its seconds, or nothing if the method is not searched; and the
        maximum seconds of rates beyond the edges of the list.
    """
    method, search = recipe.methods[name], recipe.search
    if search is None or not (candidates := successive_halving.candidates(search, method)):
        return {}, 0.0
    rounds = [
        (size, math.ceil(tokens / tokens_per_step))
        for size, tokens in successive_halving.plan_rounds(len(candidates), search.tokens)
    ]
    trial_seconds = [(size, steps * step_seconds + trial_overhead) for size, steps in rounds]
    # One model serves all trials if only their learning rates differ.
    only_rates = set(candidates[0].settings) == {"learning_rate"}
    reused = only_rates and tasks.make_task(recipe.task).reuses_models
    num_builds = 1 if reused else sum(size for size, _ in rounds)
    build_seconds += warmup_seconds(max(steps for _, steps in rounds))
    widening = 0.0
    if widening_notes(recipe, name):
        widening = successive_halving.WIDENINGS * sum(seconds for _, seconds in trial_seconds)
    total = sum(size * seconds for size, seconds in trial_seconds) + num_builds * build_seconds
    return {"search": total}, widening


def widening_notes(recipe: Recipe, name: str) -> list[str]:
    """The note that a search may try rates beyond the edges of its list, if it may."""
    method, search = recipe.methods[name], recipe.search
    if (
        search is None
        or method.kind == "base"
        or not search.extend_range
        or len(search.learning_rate) < 2
    ):
        return []
    count = len(successive_halving.candidates(search, method))
    tokens = successive_halving.max_extended_tokens(count, search.tokens)
    return [
        f"its search may take up to {tokens:,} more tokens, "
        "if the best rate is at an edge of the list"
    ]


def disk_note(needed: float, folder: Path) -> str | None:
    """A warning if the disk of `folder` has less than `needed` bytes free."""
    free_bytes = shutil.disk_usage(folder).free
    if needed <= free_bytes:
        return None
    need, free = needed / 2**30, free_bytes / 2**30
    return f"needs {need:.1f} GiB of disk during training, and {free:.1f} GiB are free"
