"""estimate.json: the estimate of each method before it ran. The report compares it with the run.

A run records predictions, which cost almost nothing. `tarazu run --estimate FILE` records what
`tarazu check --out FILE` measured instead. A method that has begun is never estimated afterwards.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from tarazu.engine.progress import log
from tarazu.errors import UserError
from tarazu.estimate import estimator
from tarazu.recipe.schema import Recipe
from tarazu.storage.atomic_io import read_json, reporting_corruption, write_json
from tarazu.storage.run_folder import StudyDir

ESTIMATE_FILE = "estimate.json"
IGNORED_KEYS = {"methods", "seeds", "language", "prefer"}  # they do not change the cost of a run


def record_missing_estimates(
    recipe: Recipe, data: Any, device: torch.device, folder: StudyDir
) -> None:
    """Add predictions to estimate.json for methods that have neither an estimate nor a run.

    Raises:
        UserError: estimate.json is damaged.
    """
    content = folder.read_json(ESTIMATE_FILE) or {"device": str(device), "methods": []}
    with reporting_corruption(folder.path / ESTIMATE_FILE):
        known = {entry["method"] for entry in content["methods"]}
    known |= {run.name for run in folder.runs()}
    new = {name: method for name, method in recipe.methods.items() if name not in known}
    if not new:
        return
    try:
        subset = recipe.model_copy(update={"methods": new})
        predicted = estimator.estimate_study(subset, data, device, measure=False)
        content["methods"] += [{**entry, "created": _now()} for entry in predicted["methods"]]
        content["total"] = estimator.study_total(recipe, content["methods"])
        write_json(folder.path / ESTIMATE_FILE, content)
    except Exception as error:  # a failed prediction must not keep the study from running
        log(f"nothing is predicted: {type(error).__name__}: {error}")


def load_estimate(path: str, recipe: Recipe) -> dict[str, Any]:
    """Read what `tarazu check --out` measured.

    Args:
        path: the file.
        recipe: the recipe that will run.

    Returns:
        The contents of estimate.json for this recipe.

    Raises:
        UserError: the file is missing or damaged, or it is of another recipe.
    """
    content = read_json(Path(path))
    hint = "write it with `tarazu check RECIPE --out FILE`"
    if content is None:
        raise UserError("no such file", location=path, hint=hint)
    mine = recipe.model_dump(mode="json")
    try:
        theirs, estimate = content["recipe"], content["estimate"]
        names = {entry["method"] for entry in estimate["methods"]} & set(mine["methods"])
        changed = [key for key in mine if key not in IGNORED_KEYS and mine[key] != theirs.get(key)]
        changed += [
            f"methods.{name}" for name in names if mine["methods"][name] != theirs["methods"][name]
        ]
        methods = [
            {**entry, "created": _now()}
            for entry in estimate["methods"]
            if entry["method"] in names
        ]
    except (KeyError, TypeError, AttributeError) as error:
        message = f"not what `tarazu check` writes: {error}"
        raise UserError(message, location=path, hint=hint) from None
    if changed:
        raise UserError(
            f"the estimate was made with another {', '.join(sorted(changed))}",
            location=path,
            hint="run `tarazu check` on this recipe, with the same --set",
        )
    return {"device": estimate.get("device"), "methods": methods}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
