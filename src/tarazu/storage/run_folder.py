"""The one place that knows what lies where in a run folder, and how it is written: aside, flushed, renamed.

`docs/run_folder.md` gives the contents of every file. Nothing here imports torch: the report and the app stand on it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tarazu.errors import TarazuError, UserError


def write_atomic(path: Path, data: bytes) -> None:
    """Writes a file so that a reader, or a power cut, sees the old one or the new one and nothing between."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".writing")
    try:
        with open(aside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise TarazuError(
            f"cannot be written: {error.strerror}",
            location=str(path),
            hint="free some disk space, then `tarazu resume`",
        ) from error
    fsync_dir(path.parent)


def fsync_dir(folder: Path) -> None:
    """Makes renames in `folder` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, value: Any) -> None:
    """JSON, indented, with not finite numbers as null."""
    text = json.dumps(replace_nonfinite(value), ensure_ascii=False, indent=1, allow_nan=False)
    write_atomic(path, text.encode("utf-8", "replace"))


def write_jsonl(path: Path, rows: list[dict]) -> None:
    """JSON lines."""
    text = "".join(
        json.dumps(replace_nonfinite(row), ensure_ascii=False, allow_nan=False) + "\n"
        for row in rows
    )
    write_atomic(path, text.encode("utf-8", "replace"))


def replace_nonfinite(value: Any) -> Any:
    """`value` with every NaN and infinity as None: JSON has neither."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): replace_nonfinite(item) for key, item in value.items()}
    return (
        [replace_nonfinite(item) for item in value] if isinstance(value, (list, tuple)) else value
    )


def read_json(path: Path, default: Any = None) -> Any:
    """The object in `path`, or `default` where there is no file (or null in it). Raises `UserError` for a damaged one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return default
    except (OSError, ValueError, RecursionError) as error:
        raise corrupt_file_error(path, f"not readable as JSON: {error}") from None
    if not isinstance(value, dict) and value is not None:
        raise corrupt_file_error(
            path, f"holds a {type(value).__name__} where an object is expected"
        )
    return default if value is None else value


def read_jsonl(path: Path) -> list[dict]:
    """The JSON lines in `path`; a last line that a crash cut short is left out. Empty where there is no file."""
    rows = []
    if path.exists():
        try:
            lines = path.read_text(encoding="utf-8").split("\n")
        except (OSError, ValueError) as error:
            raise corrupt_file_error(path, f"not readable as text: {error}") from None
        for line in lines:
            with contextlib.suppress(ValueError, RecursionError):
                rows.append(json.loads(line))
    return [row for row in rows if isinstance(row, dict)]


def corrupt_file_error(path: Path, what: str) -> UserError:
    """The error for a file of a run folder that does not hold what tarazu wrote, and how to get it back."""
    of_run = path.parent.name.startswith("seed-")
    remove, again = (path.parent, "trains this run") if of_run else (path, "writes it")
    return UserError(
        what,
        location=str(path),
        hint=f"bring it back from a copy, or remove {remove}: `tarazu resume` then {again} again",
    )


def require_empty_dir(folder: str, option: str, todo: str) -> Path:
    """A folder that may be written: not there yet, or empty. Raises `UserError`, naming the option that gave it."""
    if not folder.strip():
        raise UserError("no folder is named", location=option, hint=f"give a new one: {option} DIR")
    path = Path(folder)
    if path.exists() and not path.is_dir():
        raise UserError(
            "a file, not a folder", location=folder, hint=f"give a new folder: {option}"
        )
    if path.is_dir() and any(path.iterdir()):
        raise UserError(
            "this folder is not empty, and none is ever overwritten", location=folder, hint=todo
        )
    return path


@contextlib.contextmanager
def reporting_corruption(*paths: Path) -> Iterator[None]:
    """What goes wrong inside, with content of these files, is told as their damage. Raises `UserError`."""
    try:
        yield
    except (KeyError, IndexError, TypeError, AttributeError, ValueError, OverflowError) as error:
        there = [path for path in paths if path.exists()] or list(paths)
        names = "" if len(there) == 1 else f" ({', '.join(path.name for path in there)})"
        raise corrupt_file_error(
            there[0],
            f"does not hold what tarazu writes there{names}: {type(error).__name__} {error}",
        ) from error


@dataclass(frozen=True)
class RunDir:
    """One method with one seed: `METHOD/seed-N/`."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.parent.name

    @property
    def seed(self) -> int:
        return int(self.path.name.removeprefix("seed-"))

    @cached_property
    def kind(self) -> str:
        return (self.read_json("run.json") or {}).get("kind", self.name)

    @property
    def weights(self) -> Path:
        return self.path / "weights.safetensors"

    @property
    def weights_hash(self) -> Path:
        return self.path / "weights.sha256"

    def done(self) -> bool:
        return (self.read_json("run.json") or {}).get("status") == "done"

    def read_json(self, name: str) -> Any:
        return read_json(self.path / name)

    def read_jsonl(self, name: str) -> list[dict]:
        return read_jsonl(self.path / name)

    def disk_bytes(self) -> int:
        """What the run takes on disk now, checkpoints included."""
        return sum(path.stat().st_size for path in self.path.rglob("*") if path.is_file())

    def update(self, **fields: Any) -> None:
        """Sets fields of run.json."""
        write_json(self.path / "run.json", {**(self.read_json("run.json") or {}), **fields})


@dataclass(frozen=True)
class StudyDir:
    """A study's folder."""

    path: Path

    def run(self, name: str, seed: int) -> RunDir:
        return RunDir(self.path / name / f"seed-{seed}")

    def method_order(self) -> list[str]:
        """The methods in the recipe's order. Raises `UserError` where the file that tells it is damaged."""
        names = (self.read_json("method_order.json") or {}).get("methods", [])
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise corrupt_file_error(
                self.path / "method_order.json", "`methods` is not a list of names"
            )
        return names

    def runs(self, order: list[str] | None = None) -> list[RunDir]:
        """All runs, in the recipe's order of methods (or the order given), then by seed."""
        order = self.method_order() if order is None else order
        found = [
            RunDir(path)
            for path in self.path.glob("*/seed-*")
            if path.name.removeprefix("seed-").isdigit()
        ]
        rank = {name: i for i, name in enumerate(order)}
        return sorted(found, key=lambda run: (rank.get(run.name, len(rank)), run.name, run.seed))

    def read_json(self, name: str) -> Any:
        return read_json(self.path / name)

    def save_working_dir(self) -> None:
        """Keeps the folder that the command was given in: relative paths of the recipe count from there."""
        write_json(self.path / "working_dir.json", {"working_dir": os.getcwd()})

    @contextlib.contextmanager
    def in_working_dir(self) -> Iterator[StudyDir]:
        """Works in the folder that the study was begun in, so that its relative paths mean what they meant.

        Where that folder is not known or not there (the study was moved to another machine), they count from where one is.
        Gives the same study by a path that holds there.
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
        """Keeps a second process out of the folder. Raises `UserError` when one is at work."""
        self.path.mkdir(parents=True, exist_ok=True)
        with open(self.path / ".lock", "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UserError(
                    "another process is at work in this folder",
                    location=str(self.path),
                    hint="wait for it, or use another --out",
                ) from None
            try:
                yield
            finally:
                fcntl.flock(
                    file, fcntl.LOCK_UN
                )  # a process that was forked meanwhile holds the file open


def find_study(path: str | Path) -> StudyDir:
    """The study at `path`. Raises `UserError` where there is none."""
    folder = StudyDir(Path(path))
    if not (folder.path / "resolved.yaml").exists():
        raise UserError(
            "not a run folder (no resolved.yaml)",
            location=str(path),
            hint="give the folder that `tarazu run --out` wrote",
        )
    return folder


def find_run(path: str | Path) -> tuple[StudyDir, RunDir]:
    """The run at DIR/METHOD (its first seed) or DIR/METHOD/seed-N. Raises `UserError`, naming the runs that exist."""
    path = Path(path)
    for run_path in (path, *sorted(path.glob("seed-*"))):
        study = run_path.parent.parent
        if (run_path / "run.json").exists() and (study / "resolved.yaml").exists():
            return StudyDir(study), RunDir(run_path)
    near = [
        root
        for root in (path, path.parent, path.parent.parent)
        if (root / "resolved.yaml").exists()
    ]
    names = ", ".join(sorted({run.name for run in StudyDir(near[0]).runs()})) if near else ""
    raise UserError(
        "no run here",
        location=str(path),
        hint=f"one of: {names}" if names else "give DIR/METHOD of a run folder",
    )
