"""`tarazu merge`: parts of one study, run on several devices, as one study.

A part is a study of some of the recipe's methods or seeds, for example one that
`tarazu run RECIPE --method M` made on one device. Nothing is trained or measured here. Parts that
differ in another key of the recipe, in the data or in package versions are refused, so that all
runs of the merged study were made under the same conditions. Devices may differ, and the report
then says so.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tarazu import tasks
from tarazu.engine.progress import log
from tarazu.errors import UserError
from tarazu.estimate import estimator, record
from tarazu.recipe.schema import Recipe, dump_yaml, parse_yaml
from tarazu.storage.atomic_io import read_json, write_atomic, write_json
from tarazu.storage.run_folder import RunDir, StudyDir, find_study, require_empty_dir
from tarazu.study.results import write_results
from tarazu.study.runner import read_recipe

# Files that only training needs, and unfinished writes. They are left out of copies.
SKIPPED = shutil.ignore_patterns("checkpoint", "search", "best.safetensors", "*.writing")
# Files that `merge` itself writes into the merged study, instead of copying a part's.
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
# Files that describe one part only and are left out. The merged study gets its own afterwards: the
# report writes report.html, results.csv and figures, and `tarazu judge` writes the judge's files.
PART_ONLY = {"report.html", "results.csv", "figures", "judge.json", "judge"}


def merge(parts: Sequence[str], out: str) -> StudyDir:
    """Merge the finished runs of several studies into a new study.

    Args:
        parts: folders of the studies.
        out: a new or empty folder.

    Returns:
        The new study.

    Raises:
        UserError: the parts do not belong together, or `out` is not empty.
    """
    studies = [find_study(part) for part in parts]
    recipes = [read_recipe(study) for study in studies]
    _check_compatible(studies, recipes)
    folder = StudyDir(require_empty_dir(out, "--out", "give a new folder: --out DIR"))
    recipe = _merge_recipes(studies, recipes)
    for study in studies:
        for run in study.runs():
            if not run.done():
                log(f"skipped, because it is not finished: {run.path}")
    with folder.lock():
        for study in studies:
            _copy_files(study, folder)
        shutil.copyfile(studies[0].path / "recipe.yaml", folder.path / "recipe.yaml")
        write_json(folder.path / "method_order.json", {"methods": list(recipe.methods)})
        write_json(folder.path / "environment.json", _merge_environments(studies))
        _merge_estimates(studies, folder, recipe)
        _merge_verifications(studies, folder, recipe)
        write_results(tasks.make_task(recipe.task), recipe, folder)
        # The last file, because it makes the folder a study.
        write_atomic(folder.path / "resolved.yaml", dump_yaml(recipe).encode())
    return folder


def finished_runs(study: StudyDir) -> list[RunDir]:
    """The finished runs of a study."""
    return [run for run in study.runs() if run.done()]


def _check_compatible(studies: list[StudyDir], recipes: list[Recipe]) -> None:
    """Check that the parts can be merged.

    Raises:
        UserError: parts were made under different conditions, two of them have the same finished
            run, none has a finished run, or their searches chose different settings.
    """
    owners: dict[tuple[str, int], Path] = {}  # study of each finished run, by method and seed
    for study, recipe in zip(studies, recipes, strict=True):
        changed = _changed_keys(recipes[0], recipe)
        conditions, expected = _conditions(study), _conditions(studies[0])
        changed += [name for name in conditions if conditions[name] != expected[name]]
        if changed:
            raise UserError(
                f"differs from {studies[0].path} in: {', '.join(changed)}",
                location=str(study.path),
                hint="only methods, seeds and devices may differ between parts",
            )
        for run in finished_runs(study):
            owner = owners.setdefault((run.name, run.seed), study.path)
            # `is not` compares objects, so a study that is given twice is refused too.
            if owner is not study.path:
                raise UserError(
                    f"{run.name} with seed {run.seed} is in {owner} too",
                    location=str(study.path),
                    hint="remove the run from one of the two studies",
                )
    if not owners:
        raise UserError(
            "none of the studies has a finished run",
            location=str(studies[0].path),
            hint="`tarazu resume` finishes them",
        )
    _check_same_searches(studies)


def _changed_keys(first: Recipe, other: Recipe) -> list[str]:
    """The keys in which two recipes differ. Seeds, and methods that only one has, do not count."""
    keys = [key for key in type(first).model_fields if key not in ("methods", "seeds")]
    changed = [key for key in keys if getattr(first, key, None) != getattr(other, key, None)]
    shared = [name for name in first.methods if name in other.methods]
    return changed + [
        f"methods.{name}" for name in shared if first.methods[name] != other.methods[name]
    ]


def _conditions(study: StudyDir) -> dict[str, Any]:
    """What must be the same besides the recipe: the data, and the versions of all packages."""
    environment = study.read_json("environment.json") or {}
    return {
        "data (sha256)": (study.read_json("data.json") or {}).get("sha256"),
        "set of versions": environment.get("packages"),
        "tarazu": environment.get("tarazu"),
    }


def _check_same_searches(studies: list[StudyDir]) -> None:
    """Check that each method's search chose the same settings in all parts that have it.

    Raises:
        UserError: it did not in two of them.
    """
    winners: dict[str, tuple[Path, Any]] = {}
    for study in studies:
        for path in study.path.glob("*/search.json"):
            name, winner = path.parent.name, read_json(path, {}).get("winner")
            first_study, first_winner = winners.setdefault(name, (study.path, winner))
            if winner != first_winner:
                raise UserError(
                    f"the search of {name} chose other settings than in {first_study}",
                    location=str(path),
                    hint=f"remove {name} from one part; to run its seeds on several devices, copy "
                    f"the first part's {name}/search.json into the other parts before they run",
                )


def _merge_recipes(studies: list[StudyDir], recipes: list[Recipe]) -> Recipe:
    """The recipe with the methods and seeds of all parts.

    The methods are in the order of recipe.yaml, the user's own file. Methods that it does not name
    come last.
    """
    methods = {name: method for recipe in recipes for name, method in recipe.methods.items()}
    order = _methods_in_file(studies[0].path / "recipe.yaml")
    names = sorted(methods, key=lambda name: order.index(name) if name in order else len(order))
    seeds = list(dict.fromkeys(seed for recipe in recipes for seed in recipe.seeds))
    ordered = {name: methods[name] for name in names}
    return recipes[0].model_copy(update={"methods": ordered, "seeds": seeds})


def _methods_in_file(path: Path) -> list[str]:
    """The names of all methods in a recipe file. A part may have run only some of them."""
    tree = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    methods = tree.get("methods") if isinstance(tree, dict) else None
    return [str(name) for name in methods] if isinstance(methods, dict) else []


def _copy_files(study: StudyDir, folder: StudyDir) -> None:
    """Copy the finished runs of a part, their searches, and other files and folders of the part.

    Of a file at the top of several parts, the first part's is kept. Folders are merged: of a file
    in a folder, the last part's is kept.
    """
    for run in finished_runs(study):
        shutil.copytree(run.path, folder.run(run.name, run.seed).path, ignore=SKIPPED)
        search = run.path.parent / "search.json"
        if search.exists():
            shutil.copyfile(search, folder.path / run.name / "search.json")
    handled = {run.name for run in study.runs()} | REGENERATED | PART_ONLY
    for path in study.path.iterdir():
        target = folder.path / path.name
        if path.name in handled:
            continue
        if path.is_dir():
            shutil.copytree(path, target, ignore=SKIPPED, dirs_exist_ok=True)
        elif path.is_file() and not target.exists():
            shutil.copyfile(path, target)


def _merge_environments(studies: list[StudyDir]) -> dict[str, Any]:
    """The first part's environment, and a list of the parts: command, device, methods, seeds."""
    environments = [study.read_json("environment.json") or {} for study in studies]
    parts = []
    for study, environment in zip(studies, environments, strict=True):
        if environment.get("parts"):  # the study is a merged one: take over the list of its parts
            parts += environment["parts"]
            continue
        seeds: dict[str, list[int]] = {}
        for run in finished_runs(study):
            seeds.setdefault(run.name, []).append(run.seed)
        keys = ("command", "commit", "started", "device", "extended")
        parts.append(
            {
                **{key: environment[key] for key in keys if key in environment},
                "methods": sorted(seeds),
                "seeds": {name: sorted(seeds[name]) for name in sorted(seeds)},
            }
        )
    return {**environments[0], "parts": parts}


def _merge_estimates(studies: list[StudyDir], folder: StudyDir, recipe: Recipe) -> None:
    """Write estimate.json. Of a method that several parts estimated, the first entry counts."""
    contents = _contents(studies, record.ESTIMATE_FILE)
    if not contents:
        return
    by_method: dict[str, dict[str, Any]] = {}
    for content in contents:
        for entry in content["methods"]:
            by_method.setdefault(entry["method"], entry)
    methods = _in_order(by_method, recipe)
    total = estimator.study_total(recipe, methods)
    merged = {**contents[0], "methods": methods, "total": total}
    write_json(folder.path / record.ESTIMATE_FILE, merged)


def _merge_verifications(studies: list[StudyDir], folder: StudyDir, recipe: Recipe) -> None:
    """Write verify.json.

    Of a method that several parts verified, the entry with the most checks counts; of several with
    as many, that of the part named last. If the parts were verified on different devices, each
    entry names its device.
    """
    contents = _contents(studies, "verify.json")
    if not contents:
        return
    devices = [content.get("device") for content in contents]
    several_devices = any(device != devices[0] for device in devices)
    by_method: dict[str, dict[str, Any]] = {}
    complete = set()  # methods whose verification a part has finished
    for content in contents:
        for entry in content["methods"]:
            name = entry["method"]
            if several_devices:
                entry = {"device": content.get("device"), **entry}
            if name not in by_method or len(entry["checks"]) >= len(by_method[name]["checks"]):
                by_method[name] = entry
            if name not in content.get("waiting", ()):
                complete.add(name)
    methods = _in_order(by_method, recipe)
    verdicts = [check["verdict"] for entry in methods for check in entry["checks"]]
    # `waiting`: methods whose verification was not finished in any part.
    merged = {
        **contents[0],
        "methods": methods,
        "counts": {name: verdicts.count(name) for name in ("ok", "failed", "not applicable")},
        "verdict": "failed" if "failed" in verdicts else "ok",
        "waiting": [entry["method"] for entry in methods if entry["method"] not in complete],
    }
    write_json(folder.path / "verify.json", merged)


def _contents(studies: list[StudyDir], name: str) -> list[dict[str, Any]]:
    """The contents of a JSON file in the studies that have it."""
    contents = [study.read_json(name) for study in studies]
    return [content for content in contents if content]


def _in_order(by_method: dict[str, dict[str, Any]], recipe: Recipe) -> list[dict[str, Any]]:
    """Entries in the recipe's order of methods; entries of other methods come last."""
    order = list(recipe.methods)
    ordered = [by_method[name] for name in order if name in by_method]
    return ordered + [entry for name, entry in by_method.items() if name not in order]
