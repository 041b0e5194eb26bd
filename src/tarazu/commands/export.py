"""`tarazu export`: a finished run in a format that other tools load."""

from __future__ import annotations

from pathlib import Path

from tarazu import tasks
from tarazu.storage.atomic_io import corrupt_file_error
from tarazu.storage.run_folder import find_run, require_empty_dir


def export(run: str, to: str, format: str) -> Path:
    """Write a run to a new folder.

    Args:
        run: the run, DIR/METHOD.
        to: a new or empty folder.
        format: one of the task's formats, or empty for the method's default.

    Returns:
        The folder.

    Raises:
        UserError: there is no such run, or the method has no such format.
    """
    study, _ = find_run(run)
    target = require_empty_dir(to, "--to", "give a new folder: --to")
    task = (study.read_json("results.json") or {}).get("task")
    if task not in tasks.names():
        raise corrupt_file_error(study.path / "results.json", f"unknown task {task!r}")
    tasks.make_task(task).export(run, target, format)
    return target
