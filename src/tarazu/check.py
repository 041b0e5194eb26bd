"""`tarazu check`: what a recipe says and what its data holds, before anything is trained."""

from __future__ import annotations

import importlib
import json
import tempfile
from pathlib import Path

from tarazu.engine.progress import note
from tarazu.recipe import dump_yaml, load
from tarazu.run_folder import RunFolder
from tarazu.study import make_task, pick_device


def check(recipe_path: str, sets: list[str], rows: int, as_json: bool) -> None:
    """Prints the data (or, `as_json`, the whole of data.json with the recipe's defaults). Raises `BadInput` as `run` would."""
    recipe = load(recipe_path, sets)
    note(f"{recipe_path}: {len(recipe.methods)} methods ({', '.join(recipe.methods)}), {len(recipe.seeds)} seed(s)")
    with tempfile.TemporaryDirectory() as folder:
        study = RunFolder(Path(folder))
        make_task(recipe.task).prepare(recipe, study, pick_device(recipe))
        data = study.read_json("data.json")
    if as_json:
        print(json.dumps({"recipe": recipe.model_dump(mode="json"), "data": data}, ensure_ascii=False, indent=1))
        return
    importlib.import_module(f"tarazu.{recipe.task}.preview").show(data, rows=rows)
    note("\nthe recipe with every default:\n" + dump_yaml(recipe))
