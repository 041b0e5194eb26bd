"""The stamp of a machine: what a reader needs to repeat a measurement or to doubt it."""

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


def collect(recipe: Recipe, device: torch.device) -> dict:
    """What `environment.json` holds."""
    return {
        "tarazu": tarazu.__version__,
        **_command(device),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
        "recipe_sha256": hashlib.sha256(dump_yaml(recipe).encode()).hexdigest(),
        "threads": torch.get_num_threads(),
    }


def extended(stamp: dict, device: torch.device) -> dict:
    """The stamp of a study that is extended now: what extended it stands in a list behind what began it."""
    before = stamp.get("extended")
    return {**stamp, "extended": [*(before if isinstance(before, list) else []), _command(device)]}


def _command(device: torch.device) -> dict:
    """What was asked for, with which code, when and where."""
    return {
        "command": shlex.join(["tarazu", *sys.argv[1:]]),
        "commit": _commit(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": describe_device(device),
    }


def describe_device(device: torch.device) -> dict:
    """Type, name, memory in bytes and CPU cores."""
    cores = os.cpu_count()
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return {
            "type": "cuda",
            "name": properties.name,
            "memory": properties.total_memory,
            "cores": cores,
        }
    return {
        "type": "cpu",
        "name": _processor(),
        "memory": psutil.virtual_memory().total,
        "cores": cores,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(
            line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
        )
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of this checkout, if it is one; with + when files differ from it."""
    root = Path(tarazu.__file__).parents[2]
    try:
        commit = subprocess.run(
            ["git", "-C", root, "describe", "--always", "--dirty=+", "--abbrev=12"],
            capture_output=True,
            text=True,
            timeout=5,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return commit.stdout.strip() or None
