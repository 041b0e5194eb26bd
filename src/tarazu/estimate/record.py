"""estimate.json: what was expected of each method before it ran, which the report puts beside what happened.

A run keeps what can be told from the model's shape alone, as it costs next to nothing; `tarazu run --estimate FILE` keeps
what `tarazu check --out FILE` measured instead. A method that has begun is never estimated afterwards.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import torch

from tarazu.engine.progress import note
from tarazu.errors import BadInput
from tarazu.recipe.schema import Recipe
from tarazu.storage.run_folder import RunFolder, read_json, understood, write_json

FILE = "estimate.json"
NOT_COMPARED = {"methods", "seeds", "language", "prefer"}  # these change nothing in what one run takes


def keep(task, recipe: Recipe, data, device: torch.device, folder: RunFolder) -> None:
    """Adds to estimate.json what is foreseen of the methods that are not in it and have no run yet."""
    from tarazu.estimate import estimator

    found = folder.read_json(FILE) or {"device": str(device), "methods": []}
    with understood(folder.path / FILE):
        known = {entry["method"] for entry in found["methods"]} | {run.name for run in folder.runs()}
    fresh = {name: method for name, method in recipe.methods.items() if name not in known}
    if not fresh:
        return
    try:
        told = estimator.estimate(recipe.model_copy(update={"methods": fresh}), data, device, measure=False)
        found["methods"] += [{**entry, "made": _now()} for entry in told["methods"]]
        write_json(folder.path / FILE, {**found, "total": estimator.total(recipe, found["methods"])})
    except Exception as error:  # a guess that fails must not keep the study from running
        note(f"nothing is foreseen: {type(error).__name__}: {error}")


def adopt(path: str, recipe: Recipe) -> dict:
    """What `tarazu check --out` wrote, for estimate.json. Raises `BadInput` where it is of another recipe."""
    whole = read_json(Path(path))
    if whole is None:
        raise BadInput("no such file", where=path, todo="write it with `tarazu check RECIPE --out FILE`")
    mine = recipe.model_dump(mode="json")
    try:
        theirs, found = whole["recipe"], whole["estimate"]
        names = {entry["method"] for entry in found["methods"]}
        differ = [key for key in mine if key not in NOT_COMPARED and mine[key] != theirs.get(key)]
        differ += [f"methods.{name}" for name in names & set(mine["methods"]) if mine["methods"][name] != theirs["methods"][name]]
        methods = [{**entry, "made": _now()} for entry in found["methods"] if entry["method"] in mine["methods"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"not what `tarazu check` writes: {error}", where=path, todo="write it with `tarazu check RECIPE --out FILE`") from None
    if differ:
        raise BadInput(f"the estimate was made with another {', '.join(sorted(differ))}", where=path, todo="run `tarazu check` on this recipe, with the same --set")
    return {"device": found.get("device"), "methods": methods}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
