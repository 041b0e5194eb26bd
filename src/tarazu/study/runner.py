"""A study: every method of a recipe with every seed, each run in its own folder.

All runs have the same rows in the same order and the same budget. A finished run is never repeated.
"""

from __future__ import annotations

import shutil
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import torch

from tarazu import tasks
from tarazu.devices import free_memory, pick_device
from tarazu.engine.progress import log
from tarazu.engine.signals import StopSignals
from tarazu.engine.task import Task
from tarazu.errors import Stopped, TarazuError, UserError
from tarazu.recipe.schema import Recipe, dump_yaml, load
from tarazu.storage import provenance
from tarazu.storage.atomic_io import (
    corrupt_file_error,
    reporting_corruption,
    write_atomic,
    write_json,
)
from tarazu.storage.run_folder import RunDir, StudyDir, find_study, require_empty_dir
from tarazu.study.method_run import run_method
from tarazu.study.open_study import Study
from tarazu.study.results import write_results

Hook = Callable[[Study], None]  # called once the data is prepared and before the first run


def run(
    recipe: Recipe,
    recipe_path: str,
    out: str,
    prepared: Hook | None = None,
    files: Mapping[str, Any] | None = None,
) -> StudyDir:
    """Start a new study.

    Args:
        recipe: the recipe, with its overrides.
        recipe_path: the recipe's file, which is copied into the study.
        out: a new or empty folder. A study whose data could not be read leaves no folder.
        prepared: called once the data is prepared, before the first run.
        files: JSON files to write into the new study, by name.

    Raises:
        UserError: the folder holds a study, or recipe, data or model cannot be used.
        TarazuError: a run failed; the others have been run.
    """
    tasks.make_task(recipe.task).validate_recipe(recipe)
    folder = StudyDir(require_empty_dir(out, "--out", f"`tarazu resume {out}`, or another --out"))
    with folder.lock():
        shutil.copyfile(recipe_path, folder.path / "recipe.yaml")
        _write_method_order(folder, recipe)
        for name, content in (files or {}).items():
            write_json(folder.path / name, content)
        stamp = provenance.collect(recipe, pick_device(recipe))
        write_json(folder.path / "environment.json", stamp)
        folder.save_working_dir()
        write_atomic(folder.path / "resolved.yaml", dump_yaml(recipe).encode())
        try:
            run_pending(recipe, folder, prepared)
        except UserError:
            if not (folder.path / "data.json").exists():
                # No row was read: the corrected command may name the same folder.
                shutil.rmtree(folder.path, ignore_errors=True)
            raise
    return folder


def extend(recipe: Recipe, out: str, prepared: Hook | None = None) -> StudyDir:
    """Add methods or seeds to a study.

    Args:
        recipe: the study's recipe with more methods or seeds.
        out: the study.
        prepared: called once the data is prepared, before the first run.

    Raises:
        UserError: anything but methods and seeds differs from the study's recipe.
        TarazuError: a run failed; the others have been run.
    """
    folder = find_study(out)
    recipe = _extended_recipe(read_recipe(folder), recipe, out)
    tasks.make_task(recipe.task).validate_recipe(recipe)
    with folder.lock():
        with reporting_corruption(folder.path / "environment.json"):
            stamp = folder.read_json("environment.json") or {}
            stamp = provenance.extended(stamp, pick_device(recipe))
        write_json(folder.path / "environment.json", stamp)
        _write_method_order(folder, recipe)
        write_atomic(folder.path / "resolved.yaml", dump_yaml(recipe).encode())
        with folder.in_working_dir() as home:
            run_pending(recipe, home, prepared)
    return folder


def _extended_recipe(old: Recipe, new: Recipe, out: str) -> Recipe:
    """The recipe with the methods and seeds of both.

    Raises:
        UserError: anything else differs.
    """
    keys = [key for key in type(old).model_fields if key not in ("methods", "seeds")]
    changed = [key for key in keys if getattr(old, key) != getattr(new, key)]
    shared = [name for name in old.methods if name in new.methods]
    changed += [f"methods.{name}" for name in shared if old.methods[name] != new.methods[name]]
    if changed:
        raise UserError(
            f"the study was made with another {', '.join(changed)}",
            location=out,
            hint="only methods and seeds can be added; start a new study for the rest",
        )
    seeds = [*old.seeds, *(seed for seed in new.seeds if seed not in old.seeds)]
    return new.model_copy(update={"methods": {**old.methods, **new.methods}, "seeds": seeds})


def resume(out: str, prepared: Hook | None = None) -> StudyDir:
    """Continue a study exactly where it stopped. Finished runs are left alone.

    Raises:
        UserError: there is no study in the folder, or its data changed.
        TarazuError: a run failed; the others have been run.
    """
    folder = find_study(out)
    with folder.lock():
        recipe = read_recipe(folder)
        if not (folder.path / "method_order.json").exists():
            _write_method_order(folder, recipe)
        with folder.in_working_dir() as home:
            run_pending(recipe, home, prepared)
    return folder


def read_recipe(folder: StudyDir) -> Recipe:
    """The recipe of a study, with its defaults. Raises `UserError` where it cannot be read."""
    return load(folder.path / "resolved.yaml")


def _write_method_order(folder: StudyDir, recipe: Recipe) -> None:
    write_json(folder.path / "method_order.json", {"methods": list(recipe.methods)})


def run_pending(recipe: Recipe, folder: StudyDir, prepared: Hook | None = None) -> None:
    """Run what is not done yet, and write results.json after each run.

    Raises:
        UserError: the data changed since the study began.
        TarazuError: a run failed; the others have been run.
    """
    device, task = pick_device(recipe), tasks.make_task(recipe.task)
    precision = "high" if device.type == "cuda" else "highest"
    torch.set_float32_matmul_precision(precision)
    failures = []
    with StopSignals(str(folder.path)) as stop:
        study = Study(recipe, folder, task, _prepare(task, recipe, folder, device), device, stop)
        if prepared is not None:
            prepared(study)
        for seed in recipe.seeds:
            for name, method in recipe.methods.items():
                if method.kind == "base" and seed != recipe.seeds[0]:
                    continue  # nothing in the base model depends on the seed
                run_dir = folder.run(name, seed)
                if not run_dir.done():
                    failures += _run_or_record_failure(study, name, run_dir)
                    write_results(task, recipe, folder)
        write_results(task, recipe, folder)
    if failures:
        raise TarazuError(
            "; ".join(failures),
            location=str(folder.path),
            hint="the other methods are done; `tarazu resume` tries again",
        )


def _prepare(task: Task, recipe: Recipe, folder: StudyDir, device: torch.device) -> Any:
    """The task's data.

    Raises:
        UserError: it is not the data that the study began with.
    """
    before = (folder.read_json("data.json") or {}).get("sha256")
    data = task.prepare(recipe, folder, device)
    after = (folder.read_json("data.json") or {}).get("sha256")
    if before is not None and not isinstance(before, str):
        raise corrupt_file_error(folder.path / "data.json", "`sha256` is not a text")
    if before and before != after:
        hashes = f"sha256 {before[:12]} is now {str(after)[:12]}"
        raise UserError(
            f"the data changed since this study began ({hashes})",
            location=str(folder.path),
            hint="restore the old data, or start a new study with --out",
        )
    return data


def _run_or_record_failure(study: Study, name: str, run_dir: RunDir) -> list[str]:
    """Run one method.

    A failure is written to run.json and returned, so that the other methods still run.

    Raises:
        Stopped: a signal stopped the run.
        UserError: the recipe, the data or the model cannot be used.
    """
    try:
        run_method(study, name, run_dir)
        return []
    except Stopped:
        run_dir.update(status="stopped")
        raise
    except UserError as error:
        run_dir.update(status="failed", error=str(error))
        raise
    except Exception as error:
        run_dir.update(status="failed", error=f"{type(error).__name__}: {error}")
        log(str(error) if isinstance(error, TarazuError) else traceback.format_exc())
        return [f"{name} seed {run_dir.seed}: {error}"]
    finally:
        free_memory(study.device)
