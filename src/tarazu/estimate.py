"""What will work here, and what it will take: time, memory and disk of every method of a recipe, before it is run.

A throwaway model of each method takes three real steps and writes a few real answers, and the rest is multiplied out. With
`measure=False` nothing is loaded: FLOPs come from the model's shape and speed from a table of devices, as a range.
"""

from __future__ import annotations

import gc
import importlib
import math
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from tarazu.engine import fingerprint, search
from tarazu.engine.few import Few, fit, silence
from tarazu.engine.ledger import Ledger
from tarazu.engine.loop import MEMORY_ERRORS, SAVE_SECONDS, autocast
from tarazu.engine.order import RowOrder, order_of, undone
from tarazu.engine.progress import note
from tarazu.engine.task import Trainee
from tarazu.errors import TarazuError
from tarazu.foresight import MODEL_ERRORS, UNSEEN, foresee
from tarazu.recipe import Budget, Recipe
from tarazu.run_folder import Run, understood
from tarazu.searching import REUSED
from tarazu.study import make_task

STEPS = {"cpu": 3, "cuda": 12}  # on a GPU a step is short, and the first ones are not like the others
ROUNDS = {"cpu": 1, "cuda": 2}  # there a width's first pass is planned, compiled and recorded, and the next ones are played
SHAPES_LOOKED_AT = 200  # steps whose passes are laid out to see which shapes come: what comes later is rare
LOOKED_AT = 1000  # steps among which the heaviest one is looked for
NEVER = 10**12  # tokens between validations


def estimate(recipe: Recipe, data, device: torch.device, measure: bool = True, on: str | None = None) -> dict:
    """What `tarazu check --json` calls "estimate": one entry for each method, and the total over methods and seeds.

    Args:
        measure: take steps here; else only what the model's shape tells.
        on: a device of `foresight.DEVICES` to foresee for, instead of this one.
    """
    task, methods = make_task(recipe.task), []
    for name in recipe.methods:
        entry = foresee(task, recipe, name, data, device, on)
        why = importlib.import_module(f"tarazu.{recipe.task}.estimate").put_off(recipe, name)
        if why:
            entry["notes"] = [why]
        elif measure and entry["works"]:
            note(f"{name}: measuring {STEPS[device.type]} steps")
            entry = measured(task, recipe, name, data, device, entry)
        entry["notes"] = [*entry["notes"], *may_widen(recipe, name)]
        methods.append({"method": name, "kind": recipe.methods[name].kind, **entry})
    return {
        "device": on or str(device),
        "how": "measured" if measure else "foreseen",
        "methods": methods,
        "total": total(recipe, methods),
    }


def total(recipe: Recipe, methods: list[dict]) -> dict:
    """Over all methods and seeds (the untouched model runs once), as [least, most] seconds and bytes."""
    known = [(1 if m["kind"] == "base" else len(recipe.seeds), m) for m in methods if m["works"] and m["range"]]
    low, high = (sum(times * m["range"]["seconds"][side] for times, m in known) for side in (0, 1))
    disk = [sum(times * m["range"]["disk"][side] for times, m in known) for side in (0, 1)]
    return {"seconds": [low, high], "disk": disk, "methods": len(known)}


def measured(task, recipe: Recipe, name: str, data, device: torch.device, entry: dict) -> dict:
    """The entry with what three real steps showed; a method that breaks says how."""
    try:
        with tempfile.TemporaryDirectory() as scratch, silence():
            return {
                **entry,
                "notes": [n for n in entry["notes"] if n != UNSEEN],
                **_measure(task, recipe, name, data, device, Path(scratch)),
            }
    except MODEL_ERRORS as error:
        return {**entry, "works": False, "reasons": [*entry["reasons"], explain(error)], "seconds": None}
    finally:
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def explain(error: Exception) -> str:
    """Why a method does not work here, in one line."""
    if isinstance(error, TarazuError):
        return error.what
    text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if any(mark in str(error) for mark in MEMORY_ERRORS):
        return f"does not fit into memory: {text}"
    return f"fails with this model and attention: {type(error).__name__}: {text}"


@dataclass(frozen=True)
class Timed:
    """What a few real steps tell of a method's training."""

    train: float  # seconds of the whole budget's steps
    checkpoint: float  # seconds of the few steps' checkpoints
    each: float  # seconds of a step, which holds `held` tokens
    held: float
    lost: float  # seconds of the first passes beyond what they take later
    speed: float  # tokens a second
    memory: int  # bytes
    disk: int  # bytes


def _measure(task, recipe: Recipe, name: str, data, device: torch.device, scratch: Path) -> dict:
    known, ledger = importlib.import_module(f"tarazu.{recipe.task}.estimate"), Ledger(device)
    with ledger.phase("load"):
        trainee = task.build(recipe, name, data, recipe.seeds[0], device)
    seconds, timed, beyond, count = {"load": ledger.seconds["load"]}, None, 0.0, validations(recipe.budget)
    if trainee.may_change:
        began = time.perf_counter()
        fingerprint.fingerprint(trainee.module)
        seconds["fingerprint"] = 2 * (time.perf_counter() - began)
        timed = train_timed(task, recipe, name, data, trainee, scratch, ledger)
        seconds["train"] = timed.train
        seconds["checkpoint"] = timed.checkpoint * (count - 1 + timed.train // SAVE_SECONDS)
    trainee.module.eval()
    with torch.no_grad(), autocast(recipe.budget, device):
        parts = known.parts(task, trainee, data, recipe)
    if timed:
        seconds["validate"] = count * parts["validate"]
    seconds |= {"generate": parts["generate"] + (count * parts["sample"] if timed else 0.0), "evaluate": parts["evaluate"]}
    if timed:
        trial = parts["validate"] + timed.checkpoint
        found, beyond = searching(recipe, name, seconds["load"] + timed.lost, timed.each, timed.held, trial)
        seconds |= found
    spent = sum(seconds.values())
    speed, memory, disk = (timed.speed, timed.memory, timed.disk) if timed else (None, None, 0)
    return {
        "how": "measured", "seconds": {**seconds, "total": spent}, "tokens_per_second": speed, "memory": memory, "disk": disk,
        "range": {"seconds": [spent, spent + beyond], "disk": [disk, disk], "memory": [memory, memory]},
    }  # fmt: skip


def train_timed(task, recipe: Recipe, name: str, data, trainee: Trainee, scratch: Path, ledger: Ledger) -> Timed:
    """The heaviest step, for its memory, and then those that a run begins with, more than once where the first time is not like the others."""
    known, device = importlib.import_module(f"tarazu.{recipe.task}.estimate"), ledger.device
    order = order_of(data, recipe.methods[name], recipe.budget, recipe.seeds[0])
    heaviest = known.heaviest(data, fullest(data, order, known))
    rows = [row for step in range(STEPS[device.type]) for row in order.at(step)]
    train_few(task, recipe, name, data, trainee, heaviest, scratch / "heaviest", ledger)
    ledgers = [ledger]
    for number in range(ROUNDS[device.type]):
        ledgers.append(Ledger(device))
        run = train_few(task, recipe, name, data, trainee, rows, scratch / f"steps-{number}", ledgers[-1])
    warm, (each, speed), disk = ledgers[-1], pace(run, ledgers[-1]), room_on_disk(run)
    lost = first_cost([one.seconds["train"] for one in ledgers[1:]])
    steps = training_steps(recipe.budget, order, warm)
    shapes = partial(known.shapes, task, trainee, data, recipe) if hasattr(known, "shapes") else None
    train = steps * each + (lost * recurring(order, shapes, heaviest, warm.steps, steps) if lost else 0.0)
    memory = max(one.memory["allocated"] or one.memory["resident"] for one in ledgers)
    return Timed(train, warm.seconds["checkpoint"], each, warm.counts.tokens / warm.steps, lost, speed * steps * each / train, memory, disk)


def train_few(
    task, recipe: Recipe, name: str, data, trainee: Trainee, rows: list[int], where: Path, ledger: Ledger
) -> Run:
    """One pass of the real loop over the rows as they stand, in steps of the method's own size, without validations between."""
    method, seed = recipe.methods[name], recipe.seeds[0]
    changes = {"tokens": None, "epochs": 1.0, "batch_rows": method.batch_rows or recipe.budget.batch_rows, "evaluate_every": NEVER, "keep": "last", "patience": None, "watch": "loss"}
    budget = recipe.budget.model_copy(update=changes)
    few = Few(task, data, rows)
    few.rows = undone(rows, order_of(few, method, budget, seed))  # a step of other rows would have other shapes than the run's
    return fit(few, trainee, recipe.model_copy(update={"budget": budget}), method, Run(where / name / f"seed-{seed}"), ledger)


def room_on_disk(run: Run) -> int:
    """The most bytes that a whole run keeps there, told by a short one: two checkpoints and the weights."""
    checkpoints = [folder for folder in (run.path / "checkpoint").iterdir() if folder.is_dir()]
    size = sum(file.stat().st_size for file in checkpoints[-1].iterdir())
    return 2 * size + run.weights.stat().st_size


def training_steps(budget: Budget, order: RowOrder, warm: Ledger) -> float:
    """Optimizer steps of the whole budget; for a budget in tokens, by what a step held here."""
    if budget.epochs:
        return math.ceil(budget.epochs * order.steps_per_epoch)
    return math.ceil(budget.tokens / (warm.counts.tokens / warm.steps))


def validations(budget: Budget) -> int:
    """How many times a run validates: before the first step, when due, and at the end."""
    if budget.tokens:
        every = budget.evaluate_every or max(1, budget.tokens // 10)
        return 1 + math.ceil(budget.tokens / every)
    return 1 + math.ceil(budget.epochs)  # one that validates by tokens is rarer: epochs are what it is then read as


def pace(run: Run, warm: Ledger) -> tuple[float, float]:
    """Seconds of a step and tokens a second: of all steps on a CPU, on a GPU of those after the first third.

    Steps that took twice the median are left out there: what is compiled or recorded once must not be multiplied by the steps of a run.
    """
    if warm.device.type == "cpu":
        return warm.seconds["train"] / warm.steps, warm.counts.tokens / warm.seconds["train"]
    steps = [event for event in run.read_lines("events.jsonl") if event["event"] == "step"]
    steps = steps[len(steps) // 3 :]
    most = 2 * statistics.median(step["seconds"] for step in steps)
    steps = [step for step in steps if step["seconds"] <= most]
    each = statistics.fmean(step["seconds"] for step in steps)
    return each, sum(step["tokens_per_second"] * step["seconds"] for step in steps) / len(steps) / each


def fullest(data, order: RowOrder, known) -> list[int]:
    """The rows of the step that holds the most, of the run's first ones: what its peak of memory comes from."""
    if not hasattr(known, "weight"):  # all rows of the task are alike
        return order.at(0)
    return max((order.at(step) for step in range(min(LOOKED_AT, order.steps_per_epoch))), key=lambda rows: known.weight(data, rows))


def first_cost(rounds: list[float]) -> float:
    """Seconds that a newly built method loses until its passes are what they stay: the same steps' earlier rounds beside the last."""
    return sum(max(0.0, seconds - rounds[-1]) for seconds in rounds[:-1])


def recurring(order: RowOrder, shapes: Callable[[list[int]], set] | None, heaviest: list[int], measured: int, steps: float) -> float:
    """How many times what the measured steps lost a run loses: it meets shapes of passes that were not among them.

    Args:
        shapes: of rows, the shapes that are planned or recorded when they first come; None where the task has no such.
        heaviest: the rows of the step that came before the measured ones.
    """
    if shapes is None:
        return 1.0
    new = set().union(*(shapes(order.at(step)) for step in range(measured))) - shapes(heaviest)
    looked_at = range(min(SHAPES_LOOKED_AT, order.steps_per_epoch, math.ceil(steps)))
    return max(1.0, len(set().union(*(shapes(order.at(step)) for step in looked_at))) / len(new)) if new else 1.0


def searching(recipe: Recipe, name: str, load: float, each: float, held: float, trial: float) -> tuple[dict[str, float], float]:
    """Seconds of the method's search of its lists, and the most that rates beyond an edge may take besides.

    Args:
        load: seconds of building the method and of its first passes; each: of a later step, which holds `held` tokens; trial: of what
            each trial takes besides its steps.
    """
    method, asked = recipe.methods[name], recipe.search
    if asked is None or not (tried := search.candidates(asked, method)):
        return {}, 0.0
    rounds = [(size, math.ceil(tokens / held) * each + trial) for size, tokens in search.plan(len(tried), asked.tokens)]
    only_rates = set(tried[0].settings) == {"learning_rate"}  # then one model serves all trials
    builds = 1 if only_rates and recipe.task in REUSED else sum(size for size, _ in rounds)
    further = search.WIDENINGS * sum(spent for _, spent in rounds) if may_widen(recipe, name) else 0.0
    return {"search": sum(size * spent for size, spent in rounds) + builds * load}, further


def may_widen(recipe: Recipe, name: str) -> list[str]:
    """What makes a range of the estimate: a search whose best rate stands at an edge goes on beyond it."""
    method, asked = recipe.methods[name], recipe.search
    if asked is None or method.kind == "base" or not asked.widen or len(asked.learning_rate) < 2:
        return []
    most = search.most_beyond(len(search.candidates(asked, method)), asked.tokens)
    return [f"its search may take up to {most:,} tokens more, if the best rate stands at an edge of the list"]


def compared(found: dict, runs: Iterator[Run]) -> list[dict]:
    """The estimate beside what the runs of a study took: for each run and figure, both numbers and happened / estimated."""
    by_name, rows = {m["method"]: m for m in found["methods"]}, []
    for run in runs:
        ledger, guess = run.read_json("ledger.json"), by_name.get(run.name)
        if not ledger or not guess or not guess["seconds"]:
            continue
        with understood(run.path / "ledger.json"):
            happened = {f"{phase} (s)": ledger["seconds"].get(phase) for phase in guess["seconds"] if phase != "total"}
            happened["total (s)"] = sum(seconds or 0.0 for seconds in happened.values())
            happened["tokens/s"] = ledger["tokens_per_second"]
            happened["memory (bytes)"] = ledger["train_memory"]["allocated"] or ledger["train_memory"]["resident"]
        estimated = {f"{phase} (s)": value for phase, value in guess["seconds"].items()}
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
