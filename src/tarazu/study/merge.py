"""`tarazu merge`: parts of one study, run on several devices or machines, as one study that the report reads.

A part is a study of some of the recipe's methods or seeds: `tarazu run RECIPE --method M` on one device, other methods on
another. Nothing is trained or measured here. Parts whose recipe, data or versions differ are refused, so that what lies in
one folder was made under one set of conditions; devices may differ, and the report then says so.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from tarazu import tasks
from tarazu.engine.progress import log
from tarazu.errors import UserError
from tarazu.estimate import estimator, record
from tarazu.recipe.schema import Recipe, dump_yaml, parse_yaml
from tarazu.storage.atomic_io import read_json, write_atomic, write_json
from tarazu.storage.run_folder import RunDir, StudyDir, find_study, require_empty_dir
from tarazu.study.results import write_results
from tarazu.study.runner import read_recipe

SKIPPED = shutil.ignore_patterns("checkpoint", "search", "best.safetensors", "*.writing")
REGENERATED = {
    "recipe.yaml",
    "resolved.yaml",
    "method_order.json",
    "results.json",
    "environment.json",
    record.ESTIMATE_FILE,
    "verify.json",
    ".lock",
}
DERIVED = {
    "report.html",
    "results.csv",
    "figures",
    "judge.json",
    "judge",
}  # these tell of a part, not of the whole


def merge(parts: list[str], out: str) -> StudyDir:
    """One study in `out` of the finished runs of all parts. Raises `UserError` where they do not belong together."""
    studies = [find_study(part) for part in parts]
    recipes = [read_recipe(study) for study in studies]
    _check_compatible(studies, recipes)
    folder = StudyDir(require_empty_dir(out, "--out", "give a new folder: --out"))
    recipe = _together(studies, recipes)
    for run in (run for study in studies for run in study.runs() if not run.done()):
        log(f"left out, for it is not finished: {run.path}")
    with folder.lock():
        for study in studies:
            _copy(study, folder)
        shutil.copyfile(studies[0].path / "recipe.yaml", folder.path / "recipe.yaml")
        write_json(folder.path / "method_order.json", {"methods": list(recipe.methods)})
        write_json(folder.path / "environment.json", _environment(studies))
        _join(studies, folder, recipe)
        write_results(tasks.make_task(recipe.task), recipe, folder)
        write_atomic(
            folder.path / "resolved.yaml", dump_yaml(recipe).encode()
        )  # last: with it, the folder is a study
    return folder


def finished(study: StudyDir) -> list[RunDir]:
    return [run for run in study.runs() if run.done()]


def _check_compatible(studies: list[StudyDir], recipes: list[Recipe]) -> None:
    first, seen = recipes[0], {}
    for study, recipe in zip(studies, recipes, strict=True):
        differ = [
            key
            for key in type(first).model_fields
            if key not in ("methods", "seeds")
            and getattr(first, key, None) != getattr(recipe, key, None)
        ]
        differ += [
            f"methods.{name}"
            for name in first.methods
            if recipe.methods.get(name, first.methods[name]) != first.methods[name]
        ]
        differ += [
            what
            for what, found in _conditions(study).items()
            if found != _conditions(studies[0])[what]
        ]
        if differ:
            raise UserError(
                f"made with another {', '.join(differ)} than {studies[0].path}",
                location=str(study.path),
                hint="only methods, seeds and devices may differ between parts",
            )
        for run in finished(study):
            key = (run.name, run.seed)
            if key in seen:
                raise UserError(
                    f"{run.name} with seed {run.seed} is in {seen[key]} too",
                    location=str(study.path),
                    hint="remove one of them",
                )
            seen[key] = study.path
    if not seen:
        raise UserError(
            "no run is finished in these folders",
            location=str(studies[0].path),
            hint="`tarazu resume` ends them",
        )
    _demand_one_search(studies)


def _conditions(study: StudyDir) -> dict:
    """What must be the same besides the recipe: the rows, and the versions of what computes."""
    environment = study.read_json("environment.json") or {}
    return {
        "data (sha256)": (study.read_json("data.json") or {}).get("sha256"),
        "set of versions": environment.get("packages"),
        "tarazu": environment.get("tarazu"),
    }


def _demand_one_search(studies: list[StudyDir]) -> None:
    """A method's seeds must stand on one search, wherever they were run."""
    found: dict[str, tuple[Path, dict]] = {}
    for study in studies:
        for path in study.path.glob("*/search.json"):
            before, winner = found.setdefault(
                path.parent.name, (study.path, (read_json(path) or {}).get("winner"))
            )
            if (read_json(path) or {}).get("winner") != winner:
                raise UserError(
                    f"the search of {path.parent.name} chose other settings than in {before}",
                    location=str(path),
                    hint="copy the first part's search.json before the seeds of another part are run",
                )


def _together(studies: list[StudyDir], recipes: list[Recipe]) -> Recipe:
    """The recipe of all parts; methods in the order of the recipe as it was given, where that names them all."""
    methods = {name: method for recipe in recipes for name, method in recipe.methods.items()}
    given = _given(studies[0].path / "recipe.yaml")
    names = sorted(methods, key=lambda name: given.index(name) if name in given else len(given))
    seeds = list(dict.fromkeys(seed for recipe in recipes for seed in recipe.seeds))
    return recipes[0].model_copy(
        update={"methods": {name: methods[name] for name in names}, "seeds": seeds}
    )


def _given(path: Path) -> list[str]:
    """The methods of a recipe as it was written, which a study's own --method or --set may have cut down."""
    tree = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    methods = tree.get("methods") if isinstance(tree, dict) else None
    return [str(name) for name in methods] if isinstance(methods, dict) else []


def _copy(study: StudyDir, folder: StudyDir) -> None:
    """Finished runs, what was searched, and the task's own files that no other part has brought."""
    for run in finished(study):
        shutil.copytree(run.path, folder.run(run.name, run.seed).path, ignore=SKIPPED)
        found = run.path.parent / "search.json"
        if found.exists():
            shutil.copyfile(found, folder.path / run.name / "search.json")
    names = {run.name for run in study.runs()} | REGENERATED | DERIVED
    for path in study.path.iterdir():
        if path.is_dir() and path.name not in names:
            shutil.copytree(path, folder.path / path.name, ignore=SKIPPED, dirs_exist_ok=True)
        elif path.is_file() and path.name not in names and not (folder.path / path.name).exists():
            shutil.copyfile(path, folder.path / path.name)


def _environment(studies: list[StudyDir]) -> dict:
    """The first part's stamp; every part's command, commit, device, methods and seeds beside it."""
    stamps = [study.read_json("environment.json") or {} for study in studies]
    parts = []
    for study, stamp in zip(studies, stamps, strict=True):
        if stamp.get("parts"):  # gathered before
            parts += stamp["parts"]
            continue
        seeds: dict[str, list[int]] = {}
        for run in finished(study):
            seeds.setdefault(run.name, []).append(run.seed)
        known = {
            key: stamp.get(key)
            for key in ("command", "commit", "started", "device", "extended")
            if key in stamp
        }
        parts.append(
            {
                **known,
                "methods": sorted(seeds),
                "seeds": {name: sorted(some) for name, some in sorted(seeds.items())},
            }
        )
    return {**stamps[0], "parts": parts}


def _join(studies: list[StudyDir], folder: StudyDir, recipe: Recipe) -> None:
    """estimate.json and verify.json, whose methods are lists.

    Of a method that two parts estimated, the first counts: its later seeds were run elsewhere. Of one that two parts verified,
    what has more checks: the other was cut.
    """
    places = list(recipe.methods)
    for name in (record.ESTIMATE_FILE, "verify.json"):
        found = [one for study in studies if (one := study.read_json(name))]
        if not found:
            continue
        entries = [_where(entry, one, found) for one in found for entry in one["methods"]]
        entries.sort(
            key=lambda entry: len(entry.get("checks", ()))
        )  # sorting is stable: estimates stay as they are
        best = {
            entry["method"]: entry
            for entry in (reversed(entries) if name == record.ESTIMATE_FILE else entries)
        }
        methods = sorted(
            best.values(),
            key=lambda entry: (
                places.index(entry["method"]) if entry["method"] in places else len(places)
            ),
        )
        more = (
            {"total": estimator.study_total(recipe, methods)}
            if name == record.ESTIMATE_FILE
            else _verdict(methods, found)
        )
        write_json(folder.path / name, {**found[0], "methods": methods, **more})


def _where(entry: dict, whole: dict, found: list[dict]) -> dict:
    """A method's entry; with its device where the parts were verified on several."""
    devices = [one.get("device") for one in found]
    return (
        {"device": whole.get("device"), **entry}
        if "checks" in entry and any(device != devices[0] for device in devices)
        else entry
    )


def _verdict(methods: list[dict], found: list[dict]) -> dict:
    """What verify.json says of all methods together; `waiting` are those whose training no part came to."""
    verdicts = [check["verdict"] for method in methods for check in method["checks"]]
    whole = {
        entry["method"]
        for one in found
        for entry in one["methods"]
        if entry["method"] not in one.get("waiting", ())
    }
    return {
        "counts": {
            verdict: verdicts.count(verdict) for verdict in ("ok", "failed", "not applicable")
        },
        "verdict": "failed" if "failed" in verdicts else "ok",
        "waiting": [method["method"] for method in methods if method["method"] not in whole],
    }
