"""`tarazu export`: a run as files that other tools load. Each task knows its own forms."""

from __future__ import annotations

import importlib
from pathlib import Path

from tarazu.storage.run_folder import corrupt_file_error, find_run, require_empty_dir

EXPORTERS = {
    "chat": "tarazu.chat.inference.export",
    "captions": "tarazu.captions.inference.onnx_export",
}


def export(run: str, to: str, form: str) -> Path:
    """Writes the run at DIR/METHOD into a new folder. Raises `BadInput` when the method cannot take that form."""
    study, _ = find_run(run)
    target = require_empty_dir(to, "--to", "give a new folder: --to")
    task = (study.read_json("results.json") or {}).get("task", "chat")
    if task not in EXPORTERS:
        raise corrupt_file_error(study.path / "results.json", f"unknown task {task!r}")
    importlib.import_module(EXPORTERS[task]).export(run, target, form)
    return target
