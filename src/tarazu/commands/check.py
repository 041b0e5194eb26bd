"""`tarazu check`: what a recipe says, what its data holds, and what running it will take, before anything is trained."""

from __future__ import annotations

import json
import shlex
import tempfile
from pathlib import Path
from typing import Any

from tarazu import tasks
from tarazu.devices import pick_device
from tarazu.engine.progress import log
from tarazu.recipe.schema import dump_yaml, load
from tarazu.recipe.select import select_methods
from tarazu.storage.atomic_io import write_json
from tarazu.storage.run_folder import StudyDir, find_study


def check(
    recipe_path: str,
    overrides: list[str],
    rows: int,
    as_json: bool,
    measure: bool = True,
    on: str = "",
    compare: str = "",
    out: str = "",
    defaults: bool = False,
    methods: list[str] = (),
) -> None:
    """Prints the data and the estimate (or, `as_json`, both whole, with the recipe's defaults). Raises `UserError` as `run` would.

    Args:
        measure: take three steps of every method here; else the estimate is told from the model's shape.
        on: a device of the table to estimate for, by name; nothing is measured then.
        compare: a run folder, whose runs stand beside the estimate.
        out: a file for the same JSON.
        defaults: print the recipe with every default too.
        methods: only these of the recipe's.
    """
    from tarazu.estimate import estimator

    recipe = select_methods(load(recipe_path, overrides), methods)
    study = find_study(compare) if compare else None
    log(
        f"{recipe_path}: {len(recipe.methods)} methods ({', '.join(recipe.methods)}), {len(recipe.seeds)} seed(s)"
    )
    with tempfile.TemporaryDirectory() as folder:
        place, device = StudyDir(Path(folder)), pick_device(recipe)
        task = tasks.make_task(recipe.task)
        prepared = task.prepare(recipe, place, device)
        data = place.read_json("data.json")
        if not as_json:
            task.preview(data, rows)
        found = estimator.estimate_study(recipe, prepared, device, measure and not on, on or None)
    whole: dict[str, Any] = {
        "recipe": recipe.model_dump(mode="json"),
        "data": data,
        "estimate": found,
    }
    if study:
        whole["compared"] = estimator.compare_with_runs(found, study.runs())
    if out:
        write_json(Path(out), whole)
    if as_json:
        print(json.dumps(whole, ensure_ascii=False, indent=1))
        return
    if defaults:
        print("the recipe with every default:\n" + dump_yaml(recipe))
    said = shlex.join(
        [recipe_path, *(word for assignment in overrides for word in ("--set", assignment))]
    )
    print_estimate(said, found, whole.get("compared"), methods)


def print_estimate(
    said: str, found: dict, compared: list[dict] | None, methods: list[str] = ()
) -> None:
    """The answer, last, where the eye finds it: the estimate, what stands in the way, and whether to go on.

    Args:
        said: the recipe and its --set options, as they were given.
        methods: those that were asked for; none: all of the recipe's.
    """
    from tarazu.commands import tables
    from tarazu.estimate.estimator import disk_note

    tables.estimate(found)
    if compared is not None:
        tables.comparison(compared)
    for method in found["methods"]:
        for text in method["notes"]:
            print(f"{method['method']}: {text}")
    for method in found["methods"]:
        for text in method["reasons"]:
            print(f"{method['method']} will not work: {text}")
    space = disk_note(found["total"]["disk"][1], Path.cwd())
    if space:
        print(f"all methods and seeds: {space}")
    print(summary_line(found, f"tarazu run {said} --out DIR", bool(methods)))


def summary_line(found: dict, command: str, chosen: bool = False) -> str:
    """One line: how many methods will work, and the command that comes next, which names them where they are `chosen` ones."""
    working, methods = [m["method"] for m in found["methods"] if m["works"]], len(found["methods"])
    where = (
        "here"
        if found["how"] == "measured"
        else f"on {found['device']}, as far as can be told without measuring"
    )
    if not working:
        return f"verdict: {'none of these methods' if chosen else 'no method of this recipe'} will work {where}"
    if chosen or len(working) < methods:
        command += "".join(f" --method {name}" for name in working)
    if len(working) == methods:
        return f"verdict: {'these' if chosen else 'all'} methods will work {where}; next: {command}"
    return f"verdict: {len(working)} of {methods} methods will work {where}; next: {command}"
