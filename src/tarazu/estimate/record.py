"""estimate.json: what was expected of each method before it ran, which the report puts beside what happened.

A run keeps what can be told from the model's shape alone, as it costs next to nothing; `tarazu run --estimate FILE` keeps
what `tarazu check --out FILE` measured instead. A method that has begun is never estimated afterwards.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import torch

from tarazu.engine.progress import log
from tarazu.errors import UserError
from tarazu.recipe.schema import Recipe
from tarazu.storage.atomic_io import read_json, reporting_corruption, write_json
from tarazu.storage.run_folder import StudyDir

ESTIMATE_FILE = "estimate.json"
IGNORED_KEYS = {
    "methods",
    "seeds",
    "language",
    "prefer",
}  # these change nothing in what one run takes


def record_missing_estimates(
    task, recipe: Recipe, data, device: torch.device, folder: StudyDir
) -> None:
    """Adds to estimate.json what is predicted of the methods that are not in it and have no run yet."""
    from tarazu.estimate import estimator

    found = folder.read_json(ESTIMATE_FILE) or {"device": str(device), "methods": []}
    with reporting_corruption(folder.path / ESTIMATE_FILE):
        known = {entry["method"] for entry in found["methods"]} | {
            run.name for run in folder.runs()
        }
    fresh = {name: method for name, method in recipe.methods.items() if name not in known}
    if not fresh:
        return
    try:
        told = estimator.estimate_study(
            recipe.model_copy(update={"methods": fresh}), data, device, measure=False
        )
        found["methods"] += [{**entry, "made": _now()} for entry in told["methods"]]
        write_json(
            folder.path / ESTIMATE_FILE,
            {**found, "total": estimator.study_total(recipe, found["methods"])},
        )
    except Exception as error:  # a guess that fails must not keep the study from running
        log(f"nothing is predicted: {type(error).__name__}: {error}")


def load_estimate(path: str, recipe: Recipe) -> dict:
    """What `tarazu check --out` wrote, for estimate.json. Raises `UserError` where it is of another recipe."""
    whole = read_json(Path(path))
    if whole is None:
        raise UserError(
            "no such file", location=path, hint="write it with `tarazu check RECIPE --out FILE`"
        )
    mine = recipe.model_dump(mode="json")
    try:
        theirs, found = whole["recipe"], whole["estimate"]
        names = {entry["method"] for entry in found["methods"]}
        differ = [key for key in mine if key not in IGNORED_KEYS and mine[key] != theirs.get(key)]
        differ += [
            f"methods.{name}"
            for name in names & set(mine["methods"])
            if mine["methods"][name] != theirs["methods"][name]
        ]
        methods = [
            {**entry, "made": _now()}
            for entry in found["methods"]
            if entry["method"] in mine["methods"]
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"not what `tarazu check` writes: {error}",
            location=path,
            hint="write it with `tarazu check RECIPE --out FILE`",
        ) from None
    if differ:
        raise UserError(
            f"the estimate was made with another {', '.join(sorted(differ))}",
            location=path,
            hint="run `tarazu check` on this recipe, with the same --set",
        )
    return {"device": found.get("device"), "methods": methods}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
