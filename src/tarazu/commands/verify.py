"""`tarazu verify`: the invariants, tried on the user's own model, machine and rows, for every method of a recipe."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import torch

from tarazu import tasks
from tarazu.devices import free_memory, pick_device
from tarazu.engine.invariants.checks import TrainingFixture, shared_checks
from tarazu.engine.invariants.eta import CheckTimer
from tarazu.engine.invariants.fixture import CheckResult, not_applicable
from tarazu.engine.invariants.perturbations import shake
from tarazu.engine.precision import autocast, uses_bfloat16
from tarazu.engine.subset_task import SubsetTask
from tarazu.engine.task import Task
from tarazu.errors import TarazuError, UserError
from tarazu.recipe.schema import Recipe, load
from tarazu.recipe.select import select_methods
from tarazu.storage import provenance
from tarazu.storage.atomic_io import read_json, reporting_corruption, write_json
from tarazu.storage.run_folder import StudyDir, find_study
from tarazu.study.hyperparameter_search import search_result
from tarazu.study.runner import read_recipe

ROWS = 6  # a handful; three steps of two rows make an epoch
VERDICTS = ("ok", "failed", "not applicable")
CONDITIONS = ("task", "device", "precision", "torch", "rows", "seed")  # of the figures in one file


def verify(
    target: str, overrides: list[str], as_json: bool, out: str, methods: list[str] = ()
) -> None:
    """Checks a recipe, or the study in a run folder (whose `verify.json` it writes). Raises `TarazuError` if a check fails.

    Args:
        methods: only these of the recipe's; what the file says of the others stays.
    """
    study = find_study(target) if Path(target).is_dir() else None
    recipe = select_methods(
        with_search_winners(read_recipe(study), study) if study else load(target, overrides),
        methods,
    )
    path = (study.path / "verify.json" if study else Path(out)).absolute() if study or out else None
    if path and path.is_dir():
        raise UserError(
            "this is a folder",
            location=f"--out {out}",
            hint="give a file, or `tarazu verify DIR` for a study",
        )
    with study.in_working_dir() if study else contextlib.nullcontext():
        found = run_checks(recipe, path, read_json(path) if path and methods else None)
    if as_json:
        print(json.dumps(found, ensure_ascii=False, indent=1))
    else:
        show(found)
    failed = [
        f"{one['method']}: {check['name']}"
        for one in found["methods"]
        for check in one["checks"]
        if check["verdict"] == "failed"
    ]
    if failed:
        what = f"{len(failed)} invariants do not hold: {'; '.join(failed)}"
        raise TarazuError(what, location=target, hint="do not trust runs of these methods here")


def with_search_winners(recipe: Recipe, study: StudyDir) -> Recipe:
    """The recipe as its runs were trained: a search may have chosen another rate, rank or number of virtual tokens. Raises `UserError`."""
    for name, method in recipe.methods.items():
        if (path := study.path / name / "search.json").exists():
            recipe = recipe.replace_method(
                name, method.model_copy(update=search_result(path, method)["winner"])
            )
    return recipe


def run_checks(recipe: Recipe, path: Path | None = None, old: dict | None = None) -> dict:
    """What `verify.json` holds.

    The quick checks of every method come first, then those that train. What is known is written to `path` after each
    method, so that little is lost where time runs out.

    Args:
        old: an earlier result, whose other methods are kept. Raises `UserError` if it was made under other conditions.
    """
    device, task = pick_device(recipe), tasks.make_task(recipe.task)
    torch.set_float32_matmul_precision("high" if device.type == "cuda" else "highest")
    head = conditions(recipe, device)
    kept = others(old, head, recipe, path) if old else []
    recipe = task.invariants.lighter(recipe)
    found, waiting, whole = {name: [] for name in recipe.methods}, list(recipe.methods), {}
    with tempfile.TemporaryDirectory() as scratch:
        data = task.prepare(recipe, StudyDir(Path(scratch)), device)
        for title, stage in (
            ("quick checks", forward_checks),
            ("checks that train", training_checks),
        ):
            timer = CheckTimer(title, len(found))
            for name, checks in found.items():
                timer.begin(name)
                new = [
                    {**check.as_json(), "seconds": timer.record_check(check)}
                    for check in stage(task, recipe, name, data, device, Path(scratch) / name)
                ]
                timer.end(new)
                checks += new
                free_memory(device)
                if stage is training_checks:
                    waiting.remove(name)
                whole = assemble(head, recipe, found, kept, waiting)
                if path:
                    write_json(path, whole)
    return whole


def conditions(recipe: Recipe, device: torch.device) -> dict:
    """What the figures depend on besides the method."""
    precision = "bfloat16" if uses_bfloat16(recipe.budget, device) else "float32"
    values = (
        recipe.task,
        provenance.describe_device(device),
        precision,
        torch.__version__,
        ROWS,
        recipe.seeds[0],
    )
    return dict(zip(CONDITIONS, values, strict=True))


def others(old: dict, head: dict, recipe: Recipe, path: Path | None) -> list[dict]:
    """The methods of an earlier result that are not tried now. Raises `UserError` if it was made under other conditions."""
    with reporting_corruption(path):
        kept = [one for one in old["methods"] if one["method"] not in recipe.methods]
        _ = [check["verdict"] for one in kept for check in one["checks"]]
    differ = [key for key in CONDITIONS if old.get(key) != head[key]]
    if kept and differ:
        raise UserError(
            f"holds other methods, tried under another {', '.join(differ)}",
            location=str(path),
            hint="leave out --method, or move that file away",
        )
    return kept


def assemble(
    head: dict, recipe: Recipe, found: dict[str, list[dict]], kept: list[dict], waiting: list[str]
) -> dict:
    """The whole result; `waiting` are methods whose training is not checked yet."""
    methods = kept + [
        {"method": name, "kind": recipe.methods[name].kind, "checks": checks}
        for name, checks in found.items()
    ]
    verdicts = [check["verdict"] for method in methods for check in method["checks"]]
    return {
        **head,
        "methods": methods,
        "waiting": list(waiting),
        "counts": {verdict: verdicts.count(verdict) for verdict in VERDICTS},
        "verdict": "failed" if "failed" in verdicts else "ok",
        "generated": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def forward_checks(
    task: Task, recipe: Recipe, name: str, data, device: torch.device, folder: Path
) -> Iterator[CheckResult]:
    """The invariants of one method's forward pass."""
    if reason := task.invariants.skip_reason(recipe, name):
        yield not_applicable("everything", reason)
        return
    fixture = _make_fixture(task, recipe, name, data, device, folder)
    fixture.model.module.eval()
    with torch.no_grad(), autocast(recipe.budget, device):
        yield from task.invariants.checks(fixture)


def training_checks(
    task: Task, recipe: Recipe, name: str, data, device: torch.device, folder: Path
) -> Iterator[CheckResult]:
    """The invariants of one method's training, saving and loading; its files go under `folder`."""
    if not task.invariants.skip_reason(recipe, name):
        fixture = _make_fixture(task, recipe, name, data, device, folder)
        yield from shared_checks(
            fixture,
            lambda: task.build(recipe, name, data, recipe.seeds[0], device),
            task.invariants.deterministic,
        )


def _make_fixture(
    task: Task, recipe: Recipe, name: str, data, device: torch.device, folder: Path
) -> TrainingFixture:
    model = task.build(recipe, name, data, recipe.seeds[0], device)
    shake(model)
    rows = task.invariants.subset_rows(data, ROWS)
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


def show(found: dict) -> None:
    """Prints a table for each method on stdout."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if Console().is_terminal else 160)
    for method in found["methods"]:
        table = Table(
            title=f"{method['method']} · {found['device']['name']} · {found['precision']}",
            title_justify="left",
        )
        for column, justify in (
            ("invariant", "left"),
            ("", "left"),
            ("differs by", "right"),
            ("allowed", "right"),
            ("what was compared; reason for the tolerance", "left"),
        ):
            table.add_column(column, justify=justify)
        for check in method["checks"]:
            numbers = [
                "-" if check[key] is None else f"{check[key]:.2g}"
                for key in ("difference", "tolerance")
            ]
            text = "; ".join(part for part in (check["compared"], check["reason"]) if part)
            table.add_row(
                check["name"],
                check["verdict"].upper() if check["verdict"] == "failed" else check["verdict"],
                *numbers,
                text,
            )
        console.print(table)
    counts = found["counts"]
    console.print(
        f"{counts['ok']} hold, {counts['failed']} fail, {counts['not applicable']} do not apply"
    )
