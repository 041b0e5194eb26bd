"""What will work here, and what it will take: time, memory and disk of every method of a recipe, before it is run.

A throwaway model of each method takes three real steps and writes a few real answers, and the rest is multiplied out. With
`measure=False` nothing is loaded: FLOPs come from the model's shape and speed from a table of devices, as a range.
"""

from __future__ import annotations

import gc
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from tarazu import tasks
from tarazu.engine import fingerprint, successive_halving
from tarazu.engine.cuda_graphs import memory
from tarazu.engine.ledger import Ledger
from tarazu.engine.precision import autocast
from tarazu.engine.progress import log
from tarazu.engine.subset_task import silence
from tarazu.engine.task import Task
from tarazu.engine.trainable import TrainableModel
from tarazu.engine.trainer import SAVE_SECONDS
from tarazu.errors import TarazuError
from tarazu.estimate.cost_model import MODEL_ERRORS, NOT_PREDICTED, predict
from tarazu.estimate.dry_run import STEPS, TrainingTiming, dry_run
from tarazu.recipe.schema import Budget, Recipe
from tarazu.storage.atomic_io import reporting_corruption
from tarazu.storage.run_folder import RunDir


def estimate_study(
    recipe: Recipe, data, device: torch.device, measure: bool = True, on: str | None = None
) -> dict:
    """What `tarazu check --json` calls "estimate": one entry for each method, and the total over methods and seeds.

    Args:
        measure: take steps here; else only what the model's shape tells.
        on: a device of `foresight.DEVICES` to foresee for, instead of this one.
    """
    task, methods = tasks.make_task(recipe.task), []
    for name in recipe.methods:
        entry = predict(task, recipe, name, data, device, on)
        skip_reason = task.cost.skip_reason(recipe, name)
        if skip_reason:
            entry["notes"] = [skip_reason]
        elif measure and entry["works"]:
            log(f"{name}: measuring {STEPS[device.type]} steps")
            entry = measure_method(task, recipe, name, data, device, entry)
        entry["notes"] = [*entry["notes"], *widening_notes(recipe, name)]
        methods.append({"method": name, "kind": recipe.methods[name].kind, **entry})
    return {
        "device": on or str(device),
        "how": "measured" if measure else "predicted",
        "methods": methods,
        "total": study_total(recipe, methods),
    }


def study_total(recipe: Recipe, methods: list[dict]) -> dict:
    """Over all methods and seeds (the untouched model runs once, and a search serves all seeds), as [least, most] seconds and bytes."""
    known = [
        (recipe.seeds[:1] if m["kind"] == "base" else recipe.seeds, m)
        for m in methods
        if m["works"] and m["range"]
    ]
    seconds = [
        sum(side) for side in zip(*(seconds_for_seeds(m, seeds) for seeds, m in known), strict=True)
    ] or [0, 0]
    disk = [sum(len(seeds) * m["range"]["disk"][side] for seeds, m in known) for side in (0, 1)]
    return {"seconds": seconds, "disk": disk, "methods": len(known)}


def seconds_for_seeds(entry: dict, seeds: list[int]) -> list[float]:
    """[least, most] seconds of a method's runs with all seeds."""
    low, high = entry["range"]["seconds"]
    if entry["how"] != "measured":
        return [low * len(seeds), high * len(seeds)]
    phases, by_seed = entry["seconds"], entry.get("by_seed", {})
    train = phases.get("train", 0.0)
    again = sum(
        phases["total"]
        - phases.get("search", 0.0)
        - train
        + by_seed.get(str(seed), {}).get("train", train)
        for seed in seeds[1:]
    )
    return [low + again, high + again]


def measure_method(
    task, recipe: Recipe, name: str, data, device: torch.device, entry: dict
) -> dict:
    """The entry with what three real steps showed; a method that breaks says how."""
    try:
        with tempfile.TemporaryDirectory() as scratch, silence():
            return {
                **entry,
                "notes": [n for n in entry["notes"] if n != NOT_PREDICTED],
                **_measure(task, recipe, name, data, device, Path(scratch)),
            }
    except MODEL_ERRORS as error:
        return {
            **entry,
            "works": False,
            "reasons": [*entry["reasons"], describe_failure(error)],
            "seconds": None,
        }
    finally:
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def describe_failure(error: Exception) -> str:
    """Why a method does not work here, in one line."""
    if isinstance(error, TarazuError):
        return error.message
    text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if memory.is_out_of_memory(error):
        return f"does not fit into memory: {text}"
    return f"fails with this model and attention: {type(error).__name__}: {text}"


def _measure(task, recipe: Recipe, name: str, data, device: torch.device, scratch: Path) -> dict:
    ledger = Ledger(device)
    with ledger.phase("load"):
        model = task.build(recipe, name, data, recipe.seeds[0], device)
    seconds, timed, beyond, count = (
        {"load": ledger.seconds["load"]},
        None,
        0.0,
        count_validations(recipe.budget),
    )
    if model.trainable_names:
        began = time.perf_counter()
        fingerprint.fingerprint(model.module)
        seconds["fingerprint"] = 2 * (time.perf_counter() - began)
        timed = dry_run(task, recipe, name, data, model, scratch, ledger)
        seconds["train"] = timed.train(timed.first)
        seconds["checkpoint"] = timed.checkpoint * (count - 1 + seconds["train"] // SAVE_SECONDS)
    model.module.eval()
    with torch.no_grad(), autocast(recipe.budget, device):
        parts = task.cost.phase_seconds(model, data, recipe) or time_phases(
            task, model, data, recipe
        )
    if timed:
        seconds["validate"] = count * parts["validate"]
    seconds |= {
        "generate": parts["generate"] + (count * parts["sample"] if timed else 0.0),
        "evaluate": parts["evaluate"],
    }
    if timed:
        found, beyond = search_seconds(
            recipe,
            name,
            seconds["load"],
            timed.each,
            timed.held,
            parts["validate"] + timed.checkpoint,
            timed.lost,
        )
        seconds |= found
    spent, disk = sum(seconds.values()), timed.disk if timed else 0
    disk += task.cost.answer_bytes(data, recipe, count if timed else 0)
    return {
        "how": "measured",
        "seconds": {**seconds, "total": spent},
        "disk": disk,
        **training_summary(timed),
        "range": ranges(timed, spent, beyond, disk),
    }


def time_phases(task: Task, model: TrainableModel, data: Any, recipe: Recipe) -> dict[str, float]:
    """Seconds of one validation and of the evaluation, for a task that does not know them.

    The evaluation is timed as one validation, scaled by the sizes of the splits.
    """
    began = time.perf_counter()
    task.validate(model, data, recipe)
    validate = time.perf_counter() - began
    began = time.perf_counter()
    task.sample(model, data, recipe, final=False)
    sample = time.perf_counter() - began
    evaluate = validate * data.size("test") / max(1, data.size("validation"))
    return {"validate": validate, "sample": sample, "evaluate": evaluate, "generate": 0.0}


def training_summary(timed: TrainingTiming | None) -> dict:
    """Speed and memory of the first seed's training, and where seeds differ, those and the seconds of each."""
    if timed is None:
        return {"tokens_per_second": None, "memory": None}
    found = {
        seed: {
            "train": timed.train(one),
            "tokens_per_second": timed.speed(one),
            "memory": one.memory,
        }
        for seed, one in timed.starts.items()
    }
    by_seed = (
        {"by_seed": {str(seed): figures for seed, figures in found.items()}}
        if len(found) > 1
        else {}
    )
    return {"tokens_per_second": timed.speed(timed.first), "memory": timed.first.memory, **by_seed}


def ranges(timed: TrainingTiming | None, spent: float, beyond: float, disk: int) -> dict[str, list]:
    """[least, most] of the first seed's seconds and disk, and of the memory of any seed."""
    memory = [one.memory for one in timed.starts.values()] if timed else [None]
    return {
        "seconds": [spent, spent + beyond],
        "disk": [disk, disk],
        "memory": [min(memory), max(memory)] if timed else [None, None],
    }


def count_validations(budget: Budget) -> int:
    """How many times a run validates: before the first step, when due, and at the end."""
    if budget.tokens:
        every = budget.evaluate_every or max(1, budget.tokens // 10)
        return 1 + math.ceil(budget.tokens / every)
    return 1 + math.ceil(
        budget.epochs
    )  # one that validates by tokens is rarer: epochs are what it is then read as


def search_seconds(
    recipe: Recipe,
    name: str,
    load: float,
    each: float,
    held: float,
    trial: float,
    lost: Callable[[int], float] = lambda steps: 0.0,
) -> tuple[dict[str, float], float]:
    """Seconds of the method's search of its lists, and the most that rates beyond an edge may take besides.

    Args:
        load: seconds of building the method; each: of a step whose like has run, which holds `held` tokens; trial: of what each trial
            takes besides its steps; lost: what first passes take besides, among so many steps.
    """
    method, asked = recipe.methods[name], recipe.search
    if asked is None or not (tried := successive_halving.candidates(asked, method)):
        return {}, 0.0
    steps = [
        (size, math.ceil(tokens / held))
        for size, tokens in successive_halving.rounds(len(tried), asked.tokens)
    ]
    rounds = [(size, count * each + trial) for size, count in steps]
    load += lost(max(count for _, count in steps))
    only_rates = set(tried[0].settings) == {"learning_rate"}  # then one model serves all trials
    builds = (
        1
        if only_rates and tasks.make_task(recipe.task).reuses_models
        else sum(size for size, _ in rounds)
    )
    further = (
        successive_halving.WIDENINGS * sum(spent for _, spent in rounds)
        if widening_notes(recipe, name)
        else 0.0
    )
    return {"search": sum(size * spent for size, spent in rounds) + builds * load}, further


def widening_notes(recipe: Recipe, name: str) -> list[str]:
    """What makes a range of the estimate: a search whose best rate stands at an edge goes on beyond it."""
    method, asked = recipe.methods[name], recipe.search
    if (
        asked is None
        or method.kind == "base"
        or not asked.extend_range
        or len(asked.learning_rate) < 2
    ):
        return []
    most = successive_halving.max_extended_tokens(
        len(successive_halving.candidates(asked, method)), asked.tokens
    )
    return [
        f"its search may take up to {most:,} tokens more, if the best rate stands at an edge of the list"
    ]


def compare_with_runs(found: dict, runs: Iterator[RunDir]) -> list[dict]:
    """The estimate beside what the runs of a study took: for each run and figure, both numbers and happened / estimated."""
    by_name, rows = {m["method"]: m for m in found["methods"]}, []
    for run in runs:
        ledger, guess = run.read_json("ledger.json"), by_name.get(run.name)
        if not ledger or not guess or not guess["seconds"]:
            continue
        with reporting_corruption(run.path / "ledger.json"):
            happened = {
                f"{phase} (s)": ledger["seconds"].get(phase)
                for phase in guess["seconds"]
                if phase != "total"
            }
            happened["total (s)"] = sum(seconds or 0.0 for seconds in happened.values())
            happened["tokens/s"] = ledger["tokens_per_second"]
            happened["memory (bytes)"] = (
                ledger["train_memory"]["allocated"] or ledger["train_memory"]["resident"]
            )
        guess = guess | guess.get("by_seed", {}).get(str(run.seed), {})
        phases = guess["seconds"] | ({"train": guess["train"]} if "train" in guess else {})
        phases["total"] = sum(seconds for phase, seconds in phases.items() if phase != "total")
        estimated = {f"{phase} (s)": value for phase, value in phases.items()}
        estimated |= {"tokens/s": guess["tokens_per_second"], "memory (bytes)": guess["memory"]}
        for figure, value in estimated.items():
            real = happened.get(figure)
            ratio = real / value if real is not None and value else None
            rows.append(
                {
                    "method": run.name,
                    "seed": run.seed,
                    "figure": figure,
                    "estimated": value,
                    "happened": real,
                    "ratio": ratio,
                }
            )
    return rows


def disk_note(needed: float, folder: Path) -> str | None:
    """A warning where the disk that holds `folder` has less room than needed."""
    free = shutil.disk_usage(folder).free
    return (
        f"needs {needed / 2**30:.1f} GiB of disk while it trains, and {free / 2**30:.1f} GiB are free here"
        if needed > free
        else None
    )
