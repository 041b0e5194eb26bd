"""The layout of a study's folder: its paths, its lock, and how a study is found.

`docs/run_folder.md` gives the content of every file.

Nothing here imports torch: the report reads run folders without it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import Timeout

from tarazu.errors import UserError
from tarazu.storage.atomic_io import corrupt_file_error, read_json, read_jsonl, write_json
from tarazu.storage.cache import lock_in


@dataclass(frozen=True)
class RunDir:
    """One method with one seed: the folder `METHOD/seed-N/` of a study."""

    path: Path

    @property
    def name(self) -> str:
        """The method's name."""
        return self.path.parent.name

    @property
    def seed(self) -> int:
        """The seed, from the folder's name."""
        return int(self.path.name.removeprefix("seed-"))

    @cached_property
    def kind(self) -> str:
        """The kind of the method; its name where run.json has none."""
        return str((self.read_json("run.json") or {}).get("kind", self.name))

    @property
    def weights(self) -> Path:
        """The trained tensors."""
        return self.path / "weights.safetensors"

    @property
    def weights_hash(self) -> Path:
        """The sha256 of `weights`."""
        return self.path / "weights.sha256"

    def done(self) -> bool:
        """Whether the run is trained, proven and evaluated."""
        return bool((self.read_json("run.json") or {}).get("status") == "done")

    def read_json(self, name: str) -> Any:
        """The object in a JSON file of this run, or None. Raises `UserError` if it is damaged."""
        return read_json(self.path / name)

    def read_jsonl(self, name: str) -> list[dict[str, Any]]:
        """The objects in a JSON-lines file of this run. Raises `UserError` if it is damaged."""
        return read_jsonl(self.path / name)

    def disk_bytes(self) -> int:
        """Size of the folder in bytes, checkpoints included."""
        return sum(path.stat().st_size for path in self.path.rglob("*") if path.is_file())

    def update(self, **fields: Any) -> None:
        """Set fields of run.json."""
        write_json(self.path / "run.json", {**(self.read_json("run.json") or {}), **fields})


@dataclass(frozen=True)
class StudyDir:
    """The folder of a study."""

    path: Path

    def run(self, name: str, seed: int) -> RunDir:
        """The run of a method with a seed, whether it exists or not."""
        return RunDir(self.path / name / f"seed-{seed}")

    def read_json(self, name: str) -> Any:
        """The object in a JSON file of the study, or None. Raises `UserError` if it is damaged."""
        return read_json(self.path / name)

    def method_order(self) -> list[str]:
        """The methods in the recipe's order.

        Raises:
            UserError: method_order.json is damaged.
        """
        names = (self.read_json("method_order.json") or {}).get("methods", [])
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            path = self.path / "method_order.json"
            raise corrupt_file_error(path, "`methods` is not a list of names")
        return names

    def runs(self, order: list[str] | None = None) -> list[RunDir]:
        """All runs, by method and then by seed.

        Args:
            order: names of methods; None: the recipe's order. Other methods come last, by name.

        Raises:
            UserError: method_order.json is damaged.
        """
        order = self.method_order() if order is None else order
        rank = {name: i for i, name in enumerate(order)}
        runs = [
            RunDir(path)
            for path in self.path.glob("*/seed-*")
            if path.name.removeprefix("seed-").isdigit()
        ]
        return sorted(runs, key=lambda run: (rank.get(run.name, len(rank)), run.name, run.seed))

    def save_working_dir(self) -> None:
        """Save the current folder: relative paths of the recipe count from it."""
        write_json(self.path / "working_dir.json", {"working_dir": os.getcwd()})

    @contextlib.contextmanager
    def in_working_dir(self) -> Iterator[StudyDir]:
        """Work in the folder in which the study was started, where its relative paths are valid.

        Stay in the current folder if the other one is unknown or does not exist, for example
        because the study was moved to another machine.

        Yields:
            The same study, by a path that is valid inside.
        """
        home = (self.read_json("working_dir.json") or {}).get("working_dir")
        if (
            not isinstance(home, str)
            or not os.access(home, os.X_OK)
            or not os.path.isdir(home)
            or os.path.samefile(home, os.curdir)
        ):
            yield self
            return
        study = StudyDir(self.path.absolute())
        with contextlib.chdir(home):
            yield study

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes out of the folder. The folder is created.

        Raises:
            UserError: another process is at work in it.
        """
        lock = lock_in(self.path, timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise UserError(
                "another process is at work in this folder",
                location=str(self.path),
                hint="wait for it, or use another --out",
            ) from None
        try:
            yield
        finally:
            lock.release()


def require_empty_dir(folder: str, option: str, hint: str) -> Path:
    """A folder that may be written to.

    Args:
        folder: its path, as given.
        option: the option that gave it, for messages.
        hint: what to do when it is not empty.

    Raises:
        UserError: it is a file, or it is not empty.
    """
    if not folder.strip():
        raise UserError("no folder is named", location=option, hint=f"give a new one: {option} DIR")
    path = Path(folder)
    if path.exists() and not path.is_dir():
        raise UserError(
            "a file, not a folder", location=folder, hint=f"give a new folder: {option}"
        )
    if path.is_dir() and any(path.iterdir()):
        message = "this folder is not empty, and none is ever overwritten"
        raise UserError(message, location=folder, hint=hint)
    return path


def find_study(path: str | Path) -> StudyDir:
    """The study at a path. Raises `UserError` where there is none."""
    study = StudyDir(Path(path))
    if not (study.path / "resolved.yaml").exists():
        raise UserError(
            "not a run folder (no resolved.yaml)",
            location=str(path),
            hint="give the folder that `tarazu run --out` wrote",
        )
    return study


def find_run(path: str | Path) -> tuple[StudyDir, RunDir]:
    """The run at DIR/METHOD (its first seed) or DIR/METHOD/seed-N.

    Raises:
        UserError: there is none. The hint names the runs of the study.
    """
    path = Path(path)
    for run_path in (path, *sorted(path.glob("seed-*"))):
        study = run_path.parent.parent
        if (run_path / "run.json").exists() and (study / "resolved.yaml").exists():
            return StudyDir(study), RunDir(run_path)
    candidates = (path, path.parent, path.parent.parent)
    studies = [StudyDir(root) for root in candidates if (root / "resolved.yaml").exists()]
    names = sorted({run.name for run in studies[0].runs()}) if studies else []
    hint = f"one of: {', '.join(names)}" if names else "give DIR/METHOD of a run folder"
    raise UserError("no run here", location=str(path), hint=hint)
