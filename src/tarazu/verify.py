"""`tarazu verify`: the invariants, tried on the user's own model, machine and rows, for every method of a recipe."""

from __future__ import annotations

import gc
import importlib
import json
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import torch

from tarazu import environment
from tarazu.engine.disturb import shake
from tarazu.engine.few import Few
from tarazu.engine.invariants import Bench, Finding, not_applicable, shared
from tarazu.engine.loop import autocast, uses_bfloat16
from tarazu.engine.progress import note
from tarazu.errors import TarazuError
from tarazu.recipe import Recipe, load
from tarazu.run_folder import RunFolder, find_study, write_json
from tarazu.study import make_task, pick_device, read_recipe

ROWS = 6  # a handful; three steps of two rows make an epoch


def verify(target: str, sets: list[str], as_json: bool, out: str) -> None:
    """Checks a recipe, or the study in a run folder (whose `verify.json` it writes). Raises `TarazuError` if a check fails."""
    folder = Path(target) if Path(target).is_dir() else None
    recipe = read_recipe(find_study(folder)) if folder else load(target, sets)
    found = examine(recipe)
    for path in [folder / "verify.json"] if folder else [Path(out)] if out else []:
        write_json(path, found)
    if as_json:
        print(json.dumps(found, ensure_ascii=False, indent=1))
    else:
        show(found)
    failed = [
        f"{method['method']}: {check['name']}"
        for method in found["methods"]
        for check in method["checks"]
        if check["verdict"] == "failed"
    ]
    if failed:
        raise TarazuError(
            f"{len(failed)} invariants do not hold: {'; '.join(failed)}",
            where=target,
            todo="do not trust runs of these methods here",
        )


def examine(recipe: Recipe) -> dict:
    """What `verify.json` holds."""
    device, task = pick_device(recipe), make_task(recipe.task)
    torch.set_float32_matmul_precision("high" if device.type == "cuda" else "highest")
    known = importlib.import_module(f"tarazu.{recipe.task}.invariants")
    recipe, methods = known.lighter(recipe), []
    with tempfile.TemporaryDirectory() as scratch:
        data = task.prepare(recipe, RunFolder(Path(scratch)), device)
        for name in recipe.methods:
            note(f"verifying {name}")
            checks = [
                check.as_json() for check in examine_method(task, recipe, name, data, device, Path(scratch) / name)
            ]
            methods.append({"method": name, "kind": recipe.methods[name].kind, "checks": checks})
    verdicts = [check["verdict"] for method in methods for check in method["checks"]]
    return {
        "task": recipe.task,
        "device": environment.describe_device(device),
        "precision": "bfloat16" if uses_bfloat16(recipe.budget, device) else "float32",
        "torch": torch.__version__,
        "rows": ROWS,
        "seed": recipe.seeds[0],
        "methods": methods,
        "counts": {verdict: verdicts.count(verdict) for verdict in ("ok", "failed", "not applicable")},
        "verdict": "failed" if "failed" in verdicts else "ok",
        "generated": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def examine_method(task, recipe: Recipe, name: str, data, device: torch.device, folder: Path) -> list[Finding]:
    """Every invariant of one method. Its files go under `folder`."""
    known, seed = importlib.import_module(f"tarazu.{recipe.task}.invariants"), recipe.seeds[0]
    if why := known.put_off(recipe, name):
        return [not_applicable("everything", why)]
    trainee = task.build(recipe, name, data, seed, device)
    shake(trainee)
    bench = Bench(Few(task, data, known.few_rows(data, ROWS)), recipe, name, trainee, folder, device, seed)
    trainee.module.eval()
    with torch.no_grad(), autocast(recipe.budget, device):
        found = known.checks(bench)
    found += shared(bench, lambda: task.build(recipe, name, data, seed, device), known.steady)
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return found


def show(found: dict) -> None:
    """Prints a table for each method on stdout."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if Console().is_terminal else 160)
    for method in found["methods"]:
        table = Table(
            title=f"{method['method']} · {found['device']['name']} · {found['precision']}", title_justify="left"
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
            numbers = ["-" if check[key] is None else f"{check[key]:.2g}" for key in ("difference", "tolerance")]
            text = "; ".join(part for part in (check["compared"], check["why"]) if part)
            table.add_row(
                check["name"],
                check["verdict"].upper() if check["verdict"] == "failed" else check["verdict"],
                *numbers,
                text,
            )
        console.print(table)
    counts = found["counts"]
    console.print(f"{counts['ok']} hold, {counts['failed']} fail, {counts['not applicable']} do not apply")
