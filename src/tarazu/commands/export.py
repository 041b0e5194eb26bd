"""`tarazu export`: a run as files that other tools load. Each task knows its own forms."""

from __future__ import annotations

import importlib
from pathlib import Path

from tarazu.storage.run_folder import damaged, find_run, vacant

EXPORTERS = {"chat": "tarazu.chat.inference.export", "captions": "tarazu.captions.inference.onnx_export"}


def export(run: str, to: str, form: str) -> Path:
    """Writes the run at DIR/METHOD into a new folder. Raises `BadInput` when the method cannot take that form."""
    study, _ = find_run(run)
    target = vacant(to, "--to", "give a new folder: --to")
    task = (study.read_json("results.json") or {}).get("task", "chat")
    if task not in EXPORTERS:
        raise damaged(study.path / "results.json", f"unknown task {task!r}")
    importlib.import_module(EXPORTERS[task]).export(run, target, form)
    return target
