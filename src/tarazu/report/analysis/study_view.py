"""Read a run folder for the report: every file once. Broken files are noted, not raised."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from tarazu.errors import UserError
from tarazu.storage.run_folder import RunDir, StudyDir

PREFERENCES = ("quality", "memory", "speed", "size")


def get_path(tree: Any, *keys: Any, default: Any = None) -> Any:
    """Follow keys and indices into nested JSON: `tree[k1][k2]...`.

    Args:
        tree: any JSON value.
        keys: keys of objects and indices of lists.
        default: returned where the path ends early or leads to null; if it is a list or an object,
            also where the path leads to a value of another type.
    """
    for key in keys:
        if isinstance(tree, dict):
            tree = tree.get(key)
        elif isinstance(tree, list) and isinstance(key, int) and -len(tree) <= key < len(tree):
            tree = tree[key]
        else:
            return default
    if isinstance(default, (dict, list)) and not isinstance(tree, type(default)):
        return default
    return default if tree is None else tree


def as_number(value: Any) -> float | None:
    """`value` if it is a finite number, else None. Booleans do not count as numbers."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return value


def dicts_in(value: Any) -> list[dict]:
    """The dictionaries in a list; none where `value` is no list."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


@dataclass
class RunView:
    """One method with one seed. Absent files are empty.

    Args:
        folder: relative to the study, such as "lora/seed-0".
        run_info: run.json.
        results: its row of results.json.
        problems: the files that could not be read.
        on_other_device: whether it ran on another device than most seeds of its method, so that its
            seconds and bytes do not compare with theirs.
    """

    name: str
    kind: str
    seed: int
    folder: str
    run_info: dict = field(default_factory=dict)
    events: list[dict] = field(default_factory=list)
    ledger: dict = field(default_factory=dict)
    fingerprint: dict = field(default_factory=dict)
    metrics: dict = field(default_factory=dict)
    samples: list[dict] = field(default_factory=list)
    results: dict = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    on_other_device: bool = False

    def file(self, name: str) -> str:
        """The path of one of its files, relative to the study."""
        return f"{self.folder}/{name}"

    @property
    def status(self) -> str:
        """ "done", "failed", "stopped" or "running"."""
        if self.kind == "base" and not self.run_info:
            return "done" if self.metrics else "stopped"
        return str(self.run_info.get("status", "stopped"))

    def of_kind(self, event: str) -> list[dict]:
        """The events of one kind."""
        return [e for e in self.events if e.get("event") == event]


@dataclass
class MethodView:
    """One method of the recipe with all its seeds; `search` is its search.json."""

    name: str
    kind: str
    runs: list[RunView]
    search: dict = field(default_factory=dict)

    @property
    def first(self) -> RunView:
        """The run whose curves and outputs are shown: the first with metrics, else the first."""
        return next((run for run in self.runs if run.metrics), self.runs[0])

    @property
    def untrained(self) -> bool:
        """Whether it trains nothing, such as an ensemble of other methods, and so has no costs."""
        if self.kind == "base":
            return False
        return all(run.run_info.get("trained_parameters") == 0 for run in self.runs)

    @property
    def measured(self) -> list[RunView]:
        """The runs that have metrics."""
        return [run for run in self.runs if run.metrics]


@dataclass
class StudyView:
    """A run folder.

    Args:
        task: the name of the task; empty where no file names it.
        settings: resolved.yaml.
        extras: verify.json, judge.json and estimate.json by name.
        methods: the methods that were compared, without the base model.
        base: the base model, where it was measured.
        problems: the files that could not be read.
    """

    path: Path
    task: str
    settings: dict
    environment: dict
    data: dict
    model: dict
    extras: dict[str, dict]
    methods: list[MethodView]
    base: MethodView | None
    problems: list[str]

    @property
    def prefer(self) -> str:
        """What the recipe prefers; quality where it does not say."""
        value = self.settings.get("prefer")
        return value if value in PREFERENCES else "quality"

    @property
    def all_methods(self) -> list[MethodView]:
        """The methods, the base model first."""
        return ([self.base] if self.base else []) + self.methods

    def method(self, name: str) -> MethodView | None:
        """The method of that name, or None."""
        return next((method for method in self.methods if method.name == name), None)


def read_study(folder: Path) -> StudyView:
    """Read every file of a run folder.

    Raises:
        UserError: there is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(
            "no such run folder",
            location=str(folder),
            hint="give the folder that `tarazu run --out` wrote",
        )
    root, problems = StudyDir(folder), []
    files = {
        name: _read_dict(root, f"{name}.json", problems)
        for name in ("environment", "data", "model", "results", "verify", "judge", "estimate")
    }
    settings = _read_settings(folder / "resolved.yaml", problems)
    runs = [_read_run(run, folder) for run in root.runs(_method_order(root, problems))]
    _add_results(runs, files["results"])
    methods = _group_by_method(runs)
    for method in methods:
        method.search = _read_dict(root, f"{method.name}/search.json", problems)
    _mark_other_devices(methods, files["environment"])
    return StudyView(
        path=folder,
        task=str(settings.get("task") or files["results"].get("task") or ""),
        settings=settings,
        environment=files["environment"],
        data=files["data"],
        model=files["model"],
        extras={name: files[name] for name in ("verify", "judge", "estimate")},
        methods=[method for method in methods if method.kind != "base"],
        base=next((method for method in methods if method.kind == "base"), None),
        problems=problems + [problem for run in runs for problem in run.problems],
    )


def _group_by_method(runs: list[RunView]) -> list[MethodView]:
    """The methods in the order of their first runs."""
    methods: dict[str, MethodView] = {}
    for run in runs:
        methods.setdefault(run.name, MethodView(run.name, run.kind, [])).runs.append(run)
    return list(methods.values())


def _add_results(runs: list[RunView], results: dict) -> None:
    """Give each run its row of results.json."""
    rows = {(row.get("method"), row.get("seed")): row for row in dicts_in(results.get("rows"))}
    for run in runs:
        run.results = rows.get((run.name, run.seed), {})


def _mark_other_devices(methods: list[MethodView], environment: dict) -> None:
    """In a merged study, mark runs that were made on another device than most of their method."""
    devices: dict[tuple[str, int], str] = {}
    for part in dicts_in(environment.get("parts")):
        device = str(get_path(part, "device", "name"))
        for name in get_path(part, "methods", default=[]):
            devices |= {(str(name), seed): device for seed in seeds_of(part, str(name))}
    for method in methods:
        names = [name for run in method.runs if (name := devices.get((method.name, run.seed)))]
        most_common = max(names, key=names.count, default=None)
        for run in method.runs:
            run.on_other_device = devices.get((method.name, run.seed), most_common) != most_common


def seeds_of(part: dict, method: str) -> list[int]:
    """The seeds of a method in one part of a merged study.

    Old folders have one list of seeds for all methods instead of one list for each.
    """
    seeds = part.get("seeds")
    if isinstance(seeds, dict):
        seeds = seeds.get(method)
    return [seed for seed in seeds if isinstance(seed, int)] if isinstance(seeds, list) else []


def _method_order(root: StudyDir, problems: list[str]) -> list[str]:
    """The recipe's order of methods; empty (sorted by name) where it cannot be read."""
    try:
        return root.method_order()
    except (UserError, OSError):
        problems.append("method_order.json")
        return []


def _read_run(run: RunDir, study: Path) -> RunView:
    """The files of one run."""
    problems: list[str] = []
    folder = run.path.relative_to(study).as_posix()
    run_info = _read_dict(run, "run.json", problems, folder)
    return RunView(
        name=run.name,
        kind=str(run_info.get("kind") or run.name),
        seed=run.seed,
        folder=folder,
        run_info=run_info,
        events=_read_dicts(run, "events.jsonl", problems, folder),
        ledger=_read_dict(run, "ledger.json", problems, folder),
        fingerprint=_read_dict(run, "fingerprint.json", problems, folder),
        metrics=_read_dict(run, "metrics.json", problems, folder),
        samples=_read_dicts(run, "samples.jsonl", problems, folder),
        problems=problems,
    )


def _read_dict(holder: RunDir | StudyDir, name: str, problems: list[str], folder: str = "") -> dict:
    """An object in a JSON file; empty where there is none."""
    try:
        value = holder.read_json(name)
    except (UserError, OSError, ValueError):
        problems.append(f"{folder}/{name}".lstrip("/"))
        return {}
    return value if isinstance(value, dict) else {}


def _read_dicts(run: RunDir, name: str, problems: list[str], folder: str) -> list[dict]:
    """The objects in a JSONL file; empty where there is none."""
    try:
        return dicts_in(run.read_jsonl(name))
    except (UserError, OSError, ValueError):
        problems.append(f"{folder}/{name}")
        return []


def _read_settings(path: Path, problems: list[str]) -> dict:
    """The resolved recipe; empty where there is none."""
    if not path.exists():
        return {}
    try:
        value = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, YAMLError):
        problems.append(path.name)
        return {}
    return value if isinstance(value, dict) else {}
