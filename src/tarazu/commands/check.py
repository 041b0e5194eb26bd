"""`tarazu check`: the data, what works here, and the cost, before anything is trained."""

from __future__ import annotations

import json
import shlex
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tarazu import tasks
from tarazu.commands import tables
from tarazu.devices import pick_device
from tarazu.engine.progress import log
from tarazu.estimate.comparison import compare_with_runs
from tarazu.estimate.estimator import disk_note, estimate_study
from tarazu.recipe.schema import dump_yaml, load
from tarazu.recipe.select import select_methods
from tarazu.storage.atomic_io import write_json
from tarazu.storage.run_folder import StudyDir, find_study


def check(
    recipe_path: str,
    overrides: Sequence[str],
    rows: int,
    as_json: bool,
    measure: bool = True,
    on: str = "",
    compare: str = "",
    out: str = "",
    defaults: bool = False,
    methods: Sequence[str] = (),
) -> None:
    """Print the data and the estimate.

    Args:
        recipe_path: the recipe's file.
        overrides: `a.b=c`, changes of single keys.
        rows: how many rows to show.
        as_json: print data, estimate and recipe as JSON instead.
        measure: take a few steps of every method; otherwise predict from the model's shape.
        on: a device of the table to predict for. Nothing is measured then.
        compare: a run folder, whose runs are compared with the estimate.
        out: a file for the same JSON.
        defaults: also print the recipe with every default.
        methods: only these of the recipe's methods; none: all.

    Raises:
        UserError: the recipe, the data or an option cannot be used.
    """
    recipe = select_methods(load(recipe_path, overrides), methods)
    study = find_study(compare) if compare else None
    log(
        f"{recipe_path}: {len(recipe.methods)} methods ({', '.join(recipe.methods)}), "
        f"{len(recipe.seeds)} seed(s)"
    )
    with tempfile.TemporaryDirectory() as temp_dir:
        folder, device = StudyDir(Path(temp_dir)), pick_device(recipe)
        task = tasks.make_task(recipe.task)
        prepared = task.prepare(recipe, folder, device)
        data = folder.read_json("data.json")
        if not as_json:
            task.preview(data, rows)
        estimate = estimate_study(recipe, prepared, device, measure and not on, on or None)
    content: dict[str, Any] = {
        "recipe": recipe.model_dump(mode="json"),
        "data": data,
        "estimate": estimate,
    }
    if study:
        content["compared"] = compare_with_runs(estimate, study.runs())
    if out:
        write_json(Path(out), content)
    if as_json:
        print(json.dumps(content, ensure_ascii=False, indent=1))
        return
    if defaults:
        print("the recipe with every default:\n" + dump_yaml(recipe))
    options = [word for assignment in overrides for word in ("--set", assignment)]
    command = f"tarazu run {shlex.join([recipe_path, *options])} --out DIR"
    print_estimate(estimate, content.get("compared"), command, bool(methods))


def print_estimate(
    estimate: dict[str, Any],
    compared: list[dict[str, Any]] | None,
    command: str,
    selected: bool = False,
) -> None:
    """Print the estimate, what prevents methods from working, and the next command.

    Args:
        estimate: the estimate.
        compared: its comparison with runs, if there is one.
        command: the command that runs the recipe.
        selected: whether the user chose some of the recipe's methods.
    """
    tables.print_estimate(estimate)
    if compared is not None:
        tables.print_comparison(compared)
    for entry in estimate["methods"]:
        for note in entry["notes"]:
            print(f"{entry['method']}: {note}")
    for entry in estimate["methods"]:
        for reason in entry["reasons"]:
            print(f"{entry['method']} will not work: {reason}")
    warning = disk_note(estimate["total"]["disk"][1], Path.cwd())
    if warning:
        print(f"all methods and seeds: {warning}")
    print(summary_line(estimate, command, selected))


def summary_line(estimate: dict[str, Any], command: str, selected: bool = False) -> str:
    """One line: how many methods will work, and the next command.

    Args:
        estimate: the estimate.
        command: the command that runs the recipe. It names methods if not all are to run.
        selected: whether the user chose some of the recipe's methods.
    """
    working = [entry["method"] for entry in estimate["methods"] if entry["works"]]
    total = len(estimate["methods"])
    where = "here"
    if estimate["how"] != "measured":
        where = f"on {estimate['device']}, as far as can be predicted without measuring"
    if not working:
        which = "none of these methods" if selected else "no method of this recipe"
        return f"verdict: {which} will work {where}"
    if selected or len(working) < total:
        command += "".join(f" --method {name}" for name in working)
    which = f"{len(working)} of {total}"
    if len(working) == total:
        which = "these" if selected else "all"
    return f"verdict: {which} methods will work {where}; next: {command}"
