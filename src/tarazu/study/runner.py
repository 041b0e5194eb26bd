"""A study: every method of a recipe trained under the same conditions, each run in its own folder.

One run is: build, fingerprint, train, fingerprint again, prove, evaluate. A finished run is never
repeated.
"""

from __future__ import annotations

import re
import shutil
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tarazu import tasks
from tarazu.devices import free_memory, pick_device
from tarazu.engine import fingerprint, flops, trainer
from tarazu.engine.ledger import Ledger
from tarazu.engine.precision import autocast
from tarazu.engine.progress import log
from tarazu.engine.signals import StopSignals
from tarazu.engine.task import Task
from tarazu.engine.trainable import TrainableModel
from tarazu.errors import Stopped, TarazuError, UserError
from tarazu.recipe.schema import Method, Recipe, dump_yaml, load
from tarazu.storage import provenance
from tarazu.storage.atomic_io import (
    corrupt_file_error,
    reporting_corruption,
    write_atomic,
    write_json,
)
from tarazu.storage.run_folder import RunDir, StudyDir, find_study, require_empty_dir
from tarazu.study.hyperparameter_search import run_or_load_search
from tarazu.study.results import write_results


@dataclass
class Study:
    """An open study: its recipe, folder, task, prepared data and device."""

    recipe: Recipe
    folder: StudyDir
    task: Task
    data: Any
    device: torch.device
    stop: StopSignals


Hook = Callable[[Study], None]  # called once the data is prepared and before the first run


def run(recipe: Recipe, recipe_path: str, out: str, prepared: Hook | None = None) -> StudyDir:
    """Start a new study.

    Args:
        recipe: the recipe, with its overrides.
        recipe_path: the recipe's file, which is copied into the study.
        out: a new or empty folder. A study whose data could not be read leaves no folder.
        prepared: called once the data is prepared, before the first run.

    Raises:
        UserError: the folder holds a study, or recipe, data or model cannot be used.
        TarazuError: a run failed; the others have been run.
    """
    tasks.make_task(recipe.task).validate_recipe(recipe)
    folder = StudyDir(require_empty_dir(out, "--out", f"`tarazu resume {out}`, or another --out"))
    with folder.lock():
        shutil.copyfile(recipe_path, folder.path / "recipe.yaml")
        _write_method_order(folder, recipe)
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
    """The task's data. Raises `UserError` if it is not the data that the study began with."""
    before = (folder.read_json("data.json") or {}).get("sha256")
    data = task.prepare(recipe, folder, device)
    after = (folder.read_json("data.json") or {}).get("sha256")
    if before is not None and not isinstance(before, str):
        raise corrupt_file_error(folder.path / "data.json", "`sha256` is not a text")
    if before and before != after:
        raise UserError(
            f"the data changed since this study began (sha256 {before[:12]} is now {after[:12]})",
            location=str(folder.path),
            hint="bring the old data back, or start a new study with --out",
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


def run_method(study: Study, name: str, run_dir: RunDir) -> None:
    """Run one method with one seed, from loading to metrics.

    Args:
        study: the open study.
        name: the method.
        run_dir: the run's folder, which has the seed.

    Raises:
        TarazuError: training diverged, or a tensor changed that should not have.
        Stopped: a signal stopped the run after a step.
    """
    recipe, task, data, device = study.recipe, study.task, study.data, study.device
    # 1. The search chooses settings. Its result serves all seeds.
    search = run_or_load_search(task, recipe, name, data, device, study.stop, study.folder)
    free_memory(device)  # before the run needs the memory of the search's trials
    if search:
        winner = recipe.methods[name].model_copy(update=search["winner"])
        recipe = recipe.replace_method(name, winner)
    method, ledger = recipe.methods[name], Ledger(device)
    run_dir.update(
        name=name,
        kind=method.kind,
        seed=run_dir.seed,
        settings=method.model_dump(mode="json"),
        status="running",
        error=None,
    )
    # 2. Build the model, train it, and prove which tensors changed.
    with ledger.phase("load"):
        model = task.build(recipe, name, data, run_dir.seed, device, study.folder)
    trained = sum(parameter.numel() for parameter in model.trainable().values())
    sizes = {"trained_parameters": trained, "total_parameters": model.total_parameters()}
    run_dir.update(**sizes, trained_tensors=task.trained_tensors(model))
    log(
        f"{name}: {trained:,} of {sizes['total_parameters']:,} parameters are trainable "
        f"({describe_trainable(model.trainable_names)})"
    )
    if model.trainable_names:
        _train_and_prove(study, recipe, method, model, run_dir, ledger)
    # 3. Evaluate on the test split.
    model.module.eval()
    log(f"{name}: evaluating on the test split")
    with torch.no_grad(), autocast(recipe.budget, device):
        metrics = task.evaluate(model, data, recipe, run_dir.path, ledger)
    # 4. Write the results. Once the status is `done`, nothing needs the checkpoints.
    ledger.code_paths = task.code_paths(model, data)
    _write_ledger(study, recipe, model, run_dir, ledger, sizes, search)
    write_json(run_dir.path / "metrics.json", metrics)
    run_dir.update(status="done")
    shutil.rmtree(run_dir.path / "checkpoint", ignore_errors=True)
    (run_dir.path / "best.safetensors").unlink(missing_ok=True)


def _write_ledger(
    study: Study,
    recipe: Recipe,
    model: TrainableModel,
    run_dir: RunDir,
    ledger: Ledger,
    sizes: dict[str, int],
    search: dict[str, Any] | None,
) -> None:
    """Write ledger.json: time, memory, FLOPs, numbers of parameters, and bytes on disk.

    Args:
        study: the open study.
        recipe: the recipe with the settings that the search chose.
        model: the trained model.
        run_dir: the run's folder.
        ledger: times and memory so far.
        sizes: numbers of parameters.
        search: the content of search.json, if there was a search.
    """
    disk = {"weights_bytes": _size(run_dir.weights), "disk_bytes": run_dir.disk_bytes()}
    search_cost = {}
    if search:
        ledger.seconds["search"] = search["seconds"]
        search_cost["search_tokens"] = search["tokens"]
    with autocast(recipe.budget, study.device):
        arithmetic = flops.flops_metrics(study.task, model, study.data, recipe, ledger)
    content = {**ledger.as_json(), **arithmetic, **search_cost, **sizes, **disk}
    write_json(run_dir.path / "ledger.json", content)


def _train_and_prove(
    study: Study,
    recipe: Recipe,
    method: Method,
    model: TrainableModel,
    run_dir: RunDir,
    ledger: Ledger,
) -> None:
    """Train, and compare the hash of every tensor before and after.

    Raises:
        TarazuError: training diverged, or a tensor changed that should not have.
    """
    with ledger.phase("fingerprint"):
        before = fingerprint.fingerprint(model.module)
    trainer.train(
        study.task, model, study.data, recipe, method, run_dir, run_dir.seed, ledger, study.stop
    )
    with ledger.phase("fingerprint"):
        after = fingerprint.fingerprint(model.module)
        proof = fingerprint.compare(before, after, model.trainable_names, model.not_yet_trained())
    write_json(run_dir.path / "fingerprint.json", proof)
    fingerprint.require_ok(proof, str(run_dir.path))


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def describe_trainable(names: frozenset[str]) -> str:
    """The parts of the model that have the named tensors: blocks by number, others by name."""
    layer = re.compile(r"\.layers\.(\d+)\.")
    matches = {name: layer.search(f".{name}") for name in names}
    blocks = sorted({int(match[1]) for match in matches.values() if match})
    others = sorted({name.rsplit(".", 1)[0] for name, match in matches.items() if not match})
    parts = [f"blocks {', '.join(map(str, blocks))}"] if blocks else []
    parts += others[:4] + ["..."] * (len(others) > 4)
    return "; ".join(parts) or "nothing"
