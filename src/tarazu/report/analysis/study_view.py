"""A study as the report sees it: every file of a run folder read once; what is missing or broken is translate_note, not raised."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from tarazu.errors import UserError
from tarazu.storage.run_folder import RunDir, StudyDir


def get_path(tree: Any, *keys: Any, default: Any = None) -> Any:
    """`tree[k1][k2]...`, or `default` where the path ends early or holds null; or, beside a default list or object,
    anything of another type."""
    for key in keys:
        if isinstance(tree, dict):
            tree = tree.get(key)
        elif isinstance(tree, list) and isinstance(key, int) and -len(tree) <= key < len(tree):
            tree = tree[key]
        else:
            return default
    wrong = isinstance(default, (dict, list)) and not isinstance(tree, type(default))
    return default if tree is None or wrong else tree


def as_number(value: Any) -> float | None:
    """`value` if it is a finite number, else None. Booleans are not numbers here."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return value


def dicts_in(value: Any) -> list[dict]:
    """The dictionaries in a list; nothing where it is no list."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


@dataclass
class RunView:
    """One method with one seed. Absent files are empty; `problems` names those that could not be read."""

    name: str
    kind: str
    seed: int
    folder: str  # relative to the study: "lora/seed-0"
    run_info: dict = field(default_factory=dict)
    events: list[dict] = field(default_factory=list)
    ledger: dict = field(default_factory=dict)
    fingerprint: dict = field(default_factory=dict)
    metrics: dict = field(default_factory=dict)
    samples: list[dict] = field(default_factory=list)
    results: dict = field(default_factory=dict)  # its row of results.json
    problems: list[str] = field(default_factory=list)
    on_other_device: bool = False  # on another device than most seeds of its method: its seconds and bytes are not theirs

    def file(self, name: str) -> str:
        return f"{self.folder}/{name}"

    @property
    def status(self) -> str:
        if self.kind == "base" and not self.run_info:
            return "done" if self.metrics else "stopped"
        return str(self.run_info.get("status", "stopped"))

    def of_kind(self, event: str) -> list[dict]:
        return [e for e in self.events if e.get("event") == event]


@dataclass
class MethodView:
    """One method of the recipe with all its seeds."""

    name: str
    kind: str
    runs: list[RunView]
    search: dict = field(default_factory=dict)

    @property
    def first(self) -> RunView:
        """The run whose curves and outputs are shown: the first that came to its end, else the first."""
        return next((run for run in self.runs if run.metrics), self.runs[0])

    @property
    def untrained(self) -> bool:
        """Whether it trains nothing of its own (an ensemble of other methods): its costs are theirs."""
        return self.kind != "base" and all(
            run.run_info.get("trained_parameters") == 0 for run in self.runs
        )

    @property
    def measured(self) -> list[RunView]:
        return [run for run in self.runs if run.metrics]


@dataclass
class StudyView:
    """The whole folder."""

    path: Path
    task: str
    settings: dict
    environment: dict
    data: dict
    model: dict
    extras: dict
    methods: list[MethodView]
    base: MethodView | None
    problems: list[str]

    @property
    def prefer(self) -> str:
        value = self.settings.get("prefer")
        return value if value in ("quality", "memory", "speed", "size") else "quality"

    def method(self, name: str) -> MethodView | None:
        return next((method for method in self.methods if method.name == name), None)


def read_study(folder: Path) -> StudyView:
    """Everything in `folder`. Raises `UserError` only where there is no folder at all."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(
            "no such run folder",
            location=str(folder),
            hint="give the folder that `tarazu run --out` wrote",
        )
    root, problems = StudyDir(folder), []
    files = {
        name: _dict(root, f"{name}.json", problems)
        for name in ("environment", "data", "model", "results", "verify", "judge", "estimate")
    }
    settings = _settings(folder / "resolved.yaml", problems)
    views = [_run(run, folder) for run in root.runs(_order(root, problems))]
    methods: dict[str, MethodView] = {}
    for view in views:
        methods.setdefault(view.name, MethodView(view.name, view.kind, [])).runs.append(view)
    _mark_other_devices(list(methods.values()), files["environment"])
    for method in methods.values():
        method.search = _dict(root, f"{method.name}/search.json", problems)
    base = next((method for method in methods.values() if method.kind == "base"), None)
    for row in dicts_in(files["results"].get("rows")):
        for run in views:
            if (run.name, run.seed) == (row.get("method"), row.get("seed")):
                run.results = row
    task = settings.get("task") or files["results"].get("task") or ""
    return StudyView(
        folder,
        str(task),
        settings,
        files["environment"],
        files["data"],
        files["model"],
        {name: files[name] for name in ("verify", "judge", "estimate")},
        [method for method in methods.values() if method.kind != "base"],
        base,
        problems + [p for v in views for p in v.problems],
    )


def _mark_other_devices(methods: list[MethodView], environment: dict) -> None:
    """Of a study that was gathered from parts: the runs that were made on another device than most runs of their method."""
    devices = {}
    for part in dicts_in(environment.get("parts")):
        for method in get_path(part, "methods", default=[]):
            devices |= {
                (str(method), seed): str(get_path(part, "device", "name"))
                for seed in seeds_of(part, str(method))
            }
    for method in methods:
        names = [name for run in method.runs if (name := devices.get((method.name, run.seed)))]
        most = max(names, key=names.count, default=None)
        for run in method.runs:
            run.on_other_device = devices.get((method.name, run.seed), most) != most


def seeds_of(part: dict, method: str) -> list[int]:
    """Those that a part of a gathered study brought of a method; earlier stamps have one list for all of its methods."""
    seeds = part.get("seeds")
    found = seeds.get(method) if isinstance(seeds, dict) else seeds
    return [seed for seed in found if isinstance(seed, int)] if isinstance(found, list) else []


def _order(root: StudyDir, problems: list[str]) -> list[str]:
    """The recipe's order of methods; by name where it cannot be read."""
    try:
        return root.method_order()
    except (UserError, OSError):
        problems.append("method_order.json")
        return []


def _run(run: RunDir, folder: Path) -> RunView:
    problems: list[str] = []
    place = run.path.relative_to(folder).as_posix()
    parts = {
        name: _dict(run, f"{name}.json", problems, place)
        for name in ("run", "ledger", "fingerprint", "metrics")
    }
    lines = {name: _lines(run, f"{name}.jsonl", problems, place) for name in ("events", "samples")}
    kind = str(parts["run"].get("kind") or run.name)
    return RunView(
        run.name,
        kind,
        run.seed,
        place,
        parts["run"],
        lines["events"],
        parts["ledger"],
        parts["fingerprint"],
        parts["metrics"],
        lines["samples"],
        problems=problems,
    )


def _dict(holder: RunDir | StudyDir, name: str, problems: list[str], place: str = "") -> dict:
    try:
        value = holder.read_json(name)
    except (UserError, OSError, ValueError):
        problems.append(f"{place}/{name}".lstrip("/"))
        return {}
    return value if isinstance(value, dict) else {}


def _lines(run: RunDir, name: str, problems: list[str], place: str) -> list[dict]:
    try:
        return dicts_in(run.read_jsonl(name))
    except (UserError, OSError, ValueError):
        problems.append(f"{place}/{name}")
        return []


def _settings(path: Path, problems: list[str]) -> dict:
    if not path.exists():
        return {}
    try:
        value = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, YAMLError):
        problems.append(path.name)
        return {}
    return value if isinstance(value, dict) else {}
