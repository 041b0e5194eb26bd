"""`tarazu verify`: the invariants, checked on the user's own model, machine and rows."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from tarazu import tasks
from tarazu.commands import tables
from tarazu.devices import free_memory, pick_device
from tarazu.engine.invariants.checks import TrainingFixture, shared_checks
from tarazu.engine.invariants.eta import CheckTimer
from tarazu.engine.invariants.fixture import CheckResult, not_applicable
from tarazu.engine.invariants.perturbations import shake
from tarazu.engine.precision import autocast, uses_bfloat16
from tarazu.engine.subset_task import SubsetTask
from tarazu.engine.task import Task
from tarazu.engine.trainable import TrainableModel
from tarazu.errors import TarazuError, UserError
from tarazu.recipe.schema import Recipe, load
from tarazu.recipe.select import select_methods
from tarazu.storage import provenance
from tarazu.storage.atomic_io import read_json, reporting_corruption, write_json
from tarazu.storage.run_folder import StudyDir, find_study
from tarazu.study.hyperparameter_search import search_result
from tarazu.study.runner import read_recipe

NUM_ROWS = 6  # three steps of two rows make an epoch
VERDICTS = ("ok", "failed", "not applicable")
CONDITIONS = ("task", "device", "precision", "torch", "rows", "seed")  # the numbers depend on them

Content = dict[str, Any]  # of verify.json
Stage = Callable[[Task, Recipe, str, Any, torch.device, Path], Iterator[CheckResult]]


def verify(
    target: str, overrides: Sequence[str], as_json: bool, out: str, methods: Sequence[str] = ()
) -> None:
    """Check the invariants of a recipe or of a study.

    Args:
        target: a recipe, or a run folder, in which verify.json is then written.
        overrides: `a.b=c`, changes of single keys of a recipe.
        as_json: print JSON instead of tables.
        out: a file for the same JSON, if `target` is a recipe.
        methods: only these of the recipe's methods; results of others in the file stay.

    Raises:
        UserError: the recipe, the study or an option cannot be used.
        TarazuError: an invariant does not hold.
    """
    study = find_study(target) if Path(target).is_dir() else None
    if study:
        recipe = with_search_winners(read_recipe(study), study)
        path: Path | None = (study.path / "verify.json").absolute()
    else:
        recipe = load(target, overrides)
        path = Path(out).absolute() if out else None
    recipe = select_methods(recipe, methods)
    if path and path.is_dir():
        hint = "give a file, or `tarazu verify DIR` for a study"
        raise UserError("this is a folder", location=f"--out {out}", hint=hint)
    with study.in_working_dir() if study else contextlib.nullcontext():
        content = run_checks(recipe, path, read_json(path) if path and methods else None)
    if as_json:
        print(json.dumps(content, ensure_ascii=False, indent=1))
    else:
        tables.print_invariants(content)
    failed = [
        f"{entry['method']}: {check['name']}"
        for entry in content["methods"]
        for check in entry["checks"]
        if check["verdict"] == "failed"
    ]
    if failed:
        message = f"{len(failed)} invariants do not hold: {'; '.join(failed)}"
        hint = "do not trust runs of these methods here"
        raise TarazuError(message, location=target, hint=hint)


def with_search_winners(recipe: Recipe, study: StudyDir) -> Recipe:
    """The recipe with the settings that the study's searches chose.

    Raises:
        UserError: a search.json is damaged.
    """
    for name, method in recipe.methods.items():
        path = study.path / name / "search.json"
        if path.exists():
            winner = search_result(path, method)["winner"]
            recipe = recipe.replace_method(name, method.model_copy(update=winner))
    return recipe


def run_checks(recipe: Recipe, path: Path | None = None, old: Content | None = None) -> Content:
    """Check the invariants of every method.

    The forward checks of all methods come first, then the checks that train. The file is written
    after each method, so that an interruption loses little.

    Args:
        recipe: the recipe.
        path: the file; None: no file.
        old: an earlier content of the file, whose other methods are kept.

    Returns:
        The content of verify.json.

    Raises:
        UserError: `old` was made under other conditions, such as another device.
    """
    device, task = pick_device(recipe), tasks.make_task(recipe.task)
    torch.set_float32_matmul_precision("high" if device.type == "cuda" else "highest")
    content = conditions(recipe, device)
    kept = methods_to_keep(old, content, recipe, path) if old and path else []
    recipe = task.invariants.lighter(recipe)
    checks: dict[str, list[dict[str, Any]]] = {name: [] for name in recipe.methods}
    waiting = list(recipe.methods)  # methods whose training is not checked yet
    stages: dict[str, Stage] = {
        "quick checks": forward_checks,
        "checks that train": training_checks,
    }
    with tempfile.TemporaryDirectory() as temp_dir:
        data = task.prepare(recipe, StudyDir(Path(temp_dir)), device)
        for title, stage in stages.items():
            timer = CheckTimer(title, len(checks))
            for name in recipe.methods:
                timer.begin(name)
                results = [
                    {**result.as_json(), "seconds": timer.record_check(result)}
                    for result in stage(task, recipe, name, data, device, Path(temp_dir) / name)
                ]
                timer.end(results)
                checks[name] += results
                free_memory(device)
                if stage is training_checks:
                    waiting.remove(name)
                entries = kept + [
                    {"method": name, "kind": recipe.methods[name].kind, "checks": found}
                    for name, found in checks.items()
                ]
                content |= {"methods": entries, **summary(entries, waiting)}
                if path:
                    write_json(path, content)
    return content


def conditions(recipe: Recipe, device: torch.device) -> Content:
    """What the numbers depend on besides the method."""
    precision = "bfloat16" if uses_bfloat16(recipe.budget, device) else "float32"
    return {
        "task": recipe.task,
        "device": provenance.describe_device(device),
        "precision": precision,
        "torch": torch.__version__,
        "rows": NUM_ROWS,
        "seed": recipe.seeds[0],
    }


def methods_to_keep(old: Content, new: Content, recipe: Recipe, path: Path) -> list[dict[str, Any]]:
    """The methods of an earlier content that are not checked now.

    Raises:
        UserError: the earlier content is damaged or was made under other conditions.
    """
    with reporting_corruption(path):
        kept = [entry for entry in old["methods"] if entry["method"] not in recipe.methods]
        summary(kept, [])  # raises if an entry is damaged
    changed = [key for key in CONDITIONS if old.get(key) != new[key]]
    if kept and changed:
        raise UserError(
            f"holds other methods, checked under another {', '.join(changed)}",
            location=str(path),
            hint="leave out --method, or move that file away",
        )
    return kept


def summary(entries: list[dict[str, Any]], waiting: list[str]) -> Content:
    """The part of verify.json about all methods together.

    Args:
        entries: each with the `checks` of a method.
        waiting: methods whose training is not checked yet.
    """
    verdicts = [check["verdict"] for entry in entries for check in entry["checks"]]
    return {
        "waiting": list(waiting),
        "counts": {verdict: verdicts.count(verdict) for verdict in VERDICTS},
        "verdict": "failed" if "failed" in verdicts else "ok",
        "generated": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def forward_checks(
    task: Task, recipe: Recipe, name: str, data: Any, device: torch.device, folder: Path
) -> Iterator[CheckResult]:
    """Check the invariants of one method's forward pass.

    Args:
        task: the recipe's task.
        recipe: the recipe.
        name: the method.
        data: the prepared data.
        device: where to check.
        folder: a temporary folder.
    """
    if reason := task.invariants.skip_reason(recipe, name):
        yield not_applicable("everything", reason)
        return
    fixture = _make_fixture(task, recipe, name, data, device, folder)
    fixture.model.module.eval()
    with torch.no_grad(), autocast(recipe.budget, device):
        yield from task.invariants.checks(fixture)


def training_checks(
    task: Task, recipe: Recipe, name: str, data: Any, device: torch.device, folder: Path
) -> Iterator[CheckResult]:
    """Check the invariants of one method's training, saving and loading.

    The arguments are those of `forward_checks`.
    """
    if task.invariants.skip_reason(recipe, name):
        return
    fixture = _make_fixture(task, recipe, name, data, device, folder)

    def rebuild() -> TrainableModel:
        return task.build(recipe, name, data, recipe.seeds[0], device)

    yield from shared_checks(fixture, rebuild, task.invariants.deterministic)


def _make_fixture(
    task: Task, recipe: Recipe, name: str, data: Any, device: torch.device, folder: Path
) -> TrainingFixture:
    """A method's model and rows. The weights are perturbed, so that no check passes on zeros."""
    model = task.build(recipe, name, data, recipe.seeds[0], device)
    shake(model)
    rows = task.invariants.subset_rows(data, NUM_ROWS)
    return TrainingFixture(
        data=data,
        rows=rows,
        recipe=recipe,
        name=name,
        model=model,
        folder=folder,
        device=device,
        seed=recipe.seeds[0],
        subset=SubsetTask(task, data, rows),
    )
