"""`tarazu verify`: the invariants, tried on the user's own model, machine and rows, for every method of a recipe."""

from __future__ import annotations

import contextlib
import importlib
import json
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import torch

from tarazu.engine.invariants.checks import CheckFixture, CheckResult, not_applicable, shared
from tarazu.engine.invariants.eta import Pace
from tarazu.engine.invariants.perturbations import shake
from tarazu.engine.subset_task import SubsetTask
from tarazu.engine.trainer import autocast, uses_bfloat16
from tarazu.errors import TarazuError, UserError
from tarazu.recipe.schema import Recipe, load
from tarazu.storage import provenance
from tarazu.storage.run_folder import (
    StudyDir,
    find_study,
    read_json,
    reporting_corruption,
    write_json,
)
from tarazu.study.hyperparameter_search import search_result
from tarazu.study.runner import free_memory, make_task, pick_device, read_recipe, select_methods

ROWS = 6  # a handful; three steps of two rows make an epoch
VERDICTS = ("ok", "failed", "not applicable")
CONDITIONS = ("task", "device", "precision", "torch", "rows", "seed")  # of the figures in one file


def verify(target: str, sets: list[str], as_json: bool, out: str, methods: list[str] = ()) -> None:
    """Checks a recipe, or the study in a run folder (whose `verify.json` it writes). Raises `TarazuError` if a check fails.

    Args:
        methods: only these of the recipe's; what the file says of the others stays.
    """
    study = find_study(target) if Path(target).is_dir() else None
    recipe = select_methods(
        with_search_winners(read_recipe(study), study) if study else load(target, sets), methods
    )
    path = (study.path / "verify.json" if study else Path(out)).absolute() if study or out else None
    if path and path.is_dir():
        raise UserError(
            "this is a folder",
            where=f"--out {out}",
            todo="give a file, or `tarazu verify DIR` for a study",
        )
    with study.at_home() if study else contextlib.nullcontext():
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
        raise TarazuError(what, where=target, todo="do not trust runs of these methods here")


def with_search_winners(recipe: Recipe, study: StudyDir) -> Recipe:
    """The recipe as its runs were trained: a search may have chosen another rate, rank or number of virtual tokens. Raises `BadInput`."""
    for name, method in recipe.methods.items():
        if (path := study.path / name / "search.json").exists():
            recipe = recipe.with_method(
                name, method.model_copy(update=search_result(path, method)["winner"])
            )
    return recipe


def run_checks(recipe: Recipe, path: Path | None = None, old: dict | None = None) -> dict:
    """What `verify.json` holds.

    The quick checks of every method come first, then those that train. What is known is written to `path` after each
    method, so that little is lost where time runs out.

    Args:
        old: an earlier result, whose other methods are kept. Raises `BadInput` if it was made under other conditions.
    """
    device, task = pick_device(recipe), make_task(recipe.task)
    torch.set_float32_matmul_precision("high" if device.type == "cuda" else "highest")
    known = importlib.import_module(f"tarazu.{recipe.task}.invariants")
    head = conditions(recipe, device)
    kept = others(old, head, recipe, path) if old else []
    recipe = known.lighter(recipe)
    found, waiting, whole = {name: [] for name in recipe.methods}, list(recipe.methods), {}
    with tempfile.TemporaryDirectory() as scratch:
        data = task.prepare(recipe, StudyDir(Path(scratch)), device)
        for title, stage in (
            ("quick checks", forward_checks),
            ("checks that train", training_checks),
        ):
            pace = Pace(title, len(found))
            for name, checks in found.items():
                pace.begin(name)
                new = [
                    {**check.as_json(), "seconds": pace.told(check)}
                    for check in stage(
                        known, task, recipe, name, data, device, Path(scratch) / name
                    )
                ]
                pace.end(new)
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
    """The methods of an earlier result that are not tried now. Raises `BadInput` if it was made under other conditions."""
    with reporting_corruption(path):
        kept = [one for one in old["methods"] if one["method"] not in recipe.methods]
        _ = [check["verdict"] for one in kept for check in one["checks"]]
    differ = [key for key in CONDITIONS if old.get(key) != head[key]]
    if kept and differ:
        raise UserError(
            f"holds other methods, tried under another {', '.join(differ)}",
            where=str(path),
            todo="leave out --method, or move that file away",
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
    known, task, recipe: Recipe, name: str, data, device: torch.device, folder: Path
) -> Iterator[CheckResult]:
    """The invariants of one method's forward pass."""
    if why := known.put_off(recipe, name):
        yield not_applicable("everything", why)
        return
    bench = _make_fixture(known, task, recipe, name, data, device, folder)
    bench.model.module.eval()
    with torch.no_grad(), autocast(recipe.budget, device):
        yield from known.checks(bench)


def training_checks(
    known, task, recipe: Recipe, name: str, data, device: torch.device, folder: Path
) -> Iterator[CheckResult]:
    """The invariants of one method's training, saving and loading; its files go under `folder`."""
    if not known.put_off(recipe, name):
        bench = _make_fixture(known, task, recipe, name, data, device, folder)
        yield from shared(
            bench, lambda: task.build(recipe, name, data, recipe.seeds[0], device), known.steady
        )


def _make_fixture(
    known, task, recipe: Recipe, name: str, data, device: torch.device, folder: Path
) -> CheckFixture:
    model = task.build(recipe, name, data, recipe.seeds[0], device)
    shake(model)
    return CheckFixture(
        SubsetTask(task, data, known.few_rows(data, ROWS)),
        recipe,
        name,
        model,
        folder,
        device,
        recipe.seeds[0],
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
            ("what was compared; why so much is allowed", "left"),
        ):
            table.add_column(column, justify=justify)
        for check in method["checks"]:
            numbers = [
                "-" if check[key] is None else f"{check[key]:.2g}"
                for key in ("difference", "tolerance")
            ]
            text = "; ".join(part for part in (check["compared"], check["why"]) if part)
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
