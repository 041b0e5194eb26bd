"""results.json: one flat row for each method and seed."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from tarazu.engine.task import Task
from tarazu.recipe.schema import Recipe
from tarazu.storage.atomic_io import reporting_corruption, write_json
from tarazu.storage.run_folder import RunDir, StudyDir


def write_results(task: Task, recipe: Recipe, folder: StudyDir) -> None:
    """Write results.json from the files of the study's runs.

    Raises:
        UserError: a file of a run is damaged.
    """
    content = {
        "task": recipe.task,
        "rows": [_row(task, run) for run in folder.runs()],
        "generated": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_json(folder.path / "results.json", content)


def _row(task: Task, run: RunDir) -> dict[str, Any]:
    """What is known of one run; files that do not exist yet add nothing."""
    state, ledger, metrics = (
        run.read_json(f"{name}.json") or {} for name in ("run", "ledger", "metrics")
    )
    with reporting_corruption(run.path / "run.json"):
        trained, total = state.get("trained_parameters"), state.get("total_parameters")
        row = {
            "method": run.name,
            "kind": state.get("kind"),
            "seed": run.seed,
            "status": state.get("status"),
            "trained_parameters": trained,
            "trained_fraction": trained / total if total else None,
        }
    if ledger:
        with reporting_corruption(run.path / "ledger.json"):
            row |= cost_summary(ledger)
    if metrics:
        with reporting_corruption(run.path / "metrics.json"):
            row |= task.summary(metrics)
    return row


def cost_summary(ledger: dict[str, Any]) -> dict[str, Any]:
    """Time, memory and size of a run, from its ledger.json."""
    memory = ledger["train_memory"]
    return {
        "train_seconds": ledger["seconds"].get("train"),
        "train_memory": memory["allocated"] or memory["resident"],
        "tokens_per_second": ledger["tokens_per_second"],
        "weights_bytes": ledger["weights_bytes"],
    }
