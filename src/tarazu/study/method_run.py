"""One run: one method with one seed.

A run loads the model, hashes its tensors, trains, hashes again to prove what changed, and
evaluates.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import torch

from tarazu.devices import free_memory
from tarazu.engine import fingerprint, flops, trainer
from tarazu.engine.ledger import Ledger
from tarazu.engine.precision import autocast
from tarazu.engine.progress import log
from tarazu.engine.trainable import TrainableModel
from tarazu.recipe.schema import Method, Recipe
from tarazu.storage.atomic_io import write_json
from tarazu.storage.run_folder import RunDir
from tarazu.study.hyperparameter_search import run_or_load_search
from tarazu.study.open_study import Study


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
