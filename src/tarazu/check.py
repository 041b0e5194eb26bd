"""`tarazu check`: what a recipe says, what its data holds, and what running it will take, before anything is trained."""

from __future__ import annotations

import importlib
import json
import tempfile
from pathlib import Path
from typing import Any

from tarazu.engine.progress import note
from tarazu.recipe import Recipe, dump_yaml, load
from tarazu.run_folder import RunFolder, find_study, write_json
from tarazu.study import make_task, pick_device


def check(
    recipe_path: str,
    sets: list[str],
    rows: int,
    as_json: bool,
    measure: bool = True,
    on: str = "",
    compare: str = "",
    out: str = "",
) -> None:
    """Prints the data and the estimate (or, `as_json`, both whole, with the recipe's defaults). Raises `BadInput` as `run` would.

    Args:
        measure: take three steps of every method here; else the estimate is told from the model's shape.
        on: a device of the table to estimate for, by name; nothing is measured then.
        compare: a run folder, whose runs stand beside the estimate.
        out: a file for the same JSON.
    """
    from tarazu import estimate

    recipe = load(recipe_path, sets)
    study = find_study(compare) if compare else None
    note(f"{recipe_path}: {len(recipe.methods)} methods ({', '.join(recipe.methods)}), {len(recipe.seeds)} seed(s)")
    with tempfile.TemporaryDirectory() as folder:
        place, device = RunFolder(Path(folder)), pick_device(recipe)
        prepared = make_task(recipe.task).prepare(recipe, place, device)
        data = place.read_json("data.json")
        if not as_json:
            importlib.import_module(f"tarazu.{recipe.task}.preview").show(data, rows=rows)
        found = estimate.estimate(recipe, prepared, device, measure and not on, on or None)
    whole: dict[str, Any] = {"recipe": recipe.model_dump(mode="json"), "data": data, "estimate": found}
    if study:
        whole["compared"] = estimate.compared(found, study.runs())
    if out:
        write_json(Path(out), whole)
    if as_json:
        print(json.dumps(whole, ensure_ascii=False, indent=1))
        return
    from tarazu import table

    table.estimate(found)
    if study:
        table.comparison(whole["compared"])
    say(recipe, found)


def say(recipe: Recipe, found: dict) -> None:
    """What to know before the start, and the recipe with every default."""
    for method in found["methods"]:
        for text in method["reasons"]:
            note(f"{method['method']} will not work: {text}")
        for text in method["notes"]:
            note(f"{method['method']}: {text}")
    note("\nthe recipe with every default:\n" + dump_yaml(recipe))
