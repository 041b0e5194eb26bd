"""The machine, code and command of a study: what a reader needs to repeat a measurement."""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch

import tarazu
from tarazu.recipe.schema import Recipe, dump_yaml

PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "safetensors",
    "tokenizers",
    "datasets",
    "numpy",
    "sacrebleu",
    "pydantic",
)


def collect(recipe: Recipe, device: torch.device) -> dict[str, Any]:
    """The contents of `environment.json` for a study that starts now."""
    versions = {name: _version(name) for name in PACKAGES}
    return {
        "tarazu": tarazu.__version__,
        **_invocation(device),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: number for name, number in versions.items() if number},
        "recipe_sha256": hashlib.sha256(dump_yaml(recipe).encode()).hexdigest(),
        "threads": torch.get_num_threads(),
    }


def extended(provenance: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """The contents of `environment.json` for a study that is extended now.

    Args:
        provenance: its contents so far, which stay. The list `extended` gets one item more.
        device: where the extension runs.
    """
    before = provenance.get("extended")
    extensions = [*(before if isinstance(before, list) else []), _invocation(device)]
    return {**provenance, "extended": extensions}


def _invocation(device: torch.device) -> dict[str, Any]:
    """The command, the code's version, the time and the device."""
    return {
        "command": shlex.join(["tarazu", *sys.argv[1:]]),
        "commit": _commit(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": describe_device(device),
    }


def describe_device(device: torch.device) -> dict[str, Any]:
    """Type, name, memory in bytes, and number of CPU cores."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        name, memory = properties.name, properties.total_memory
    else:
        name, memory = _processor_name(), psutil.virtual_memory().total
    kind = "cuda" if device.type == "cuda" else "cpu"
    return {"type": kind, "name": name, "memory": memory, "cores": os.cpu_count()}


def _processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of this checkout, with + if files differ from it; None outside a checkout."""
    root = Path(tarazu.__file__).parents[2]
    command = ["git", "-C", str(root), "describe", "--always", "--dirty=+", "--abbrev=12"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None
