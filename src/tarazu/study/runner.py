"""A study: every method of a recipe trained under the same conditions, each run in its own folder, then gathered.

Each run is: build, fingerprint, train, fingerprint again, prove, evaluate. A run that is done is never repeated.
"""

from __future__ import annotations

import gc
import importlib
import re
import shutil
import traceback
from datetime import UTC, datetime

import torch

from tarazu.engine import fingerprint, flops, trainer
from tarazu.engine.ledger import Ledger
from tarazu.engine.progress import log
from tarazu.engine.signals import StopSignals
from tarazu.errors import Stopped, TarazuError, UserError
from tarazu.estimate import record
from tarazu.recipe.schema import Recipe, dump_yaml, load
from tarazu.storage import provenance
from tarazu.storage.run_folder import (
    RunDir,
    StudyDir,
    corrupt_file_error,
    find_study,
    reporting_corruption,
    require_empty_dir,
    write_atomic,
    write_json,
)
from tarazu.study.hyperparameter_search import run_or_load_search

TASKS = {"chat": "tarazu.chat.task:Chat", "captions": "tarazu.captions.task:Captions"}


def run(
    recipe_path: str, out: str, methods: list[str] = (), sets: list[str] = (), estimate: str = ""
) -> StudyDir:
    """`tarazu run`: a new study in `out`. Raises `BadInput` if the folder already holds one; a study whose data or model
    could not be had leaves no folder.

    Args:
        estimate: what `tarazu check --out` wrote for this recipe, kept beside the results.
    """
    recipe = select_methods(load(recipe_path, sets), methods)
    make_task(recipe.task).admit(recipe)
    expected = record.load_estimate(estimate, recipe) if estimate else None
    folder = StudyDir(require_empty_dir(out, "--out", f"`tarazu resume {out}`, or another --out"))
    with folder.lock():
        shutil.copyfile(recipe_path, folder.path / "recipe.yaml")
        write_json(folder.path / "order.json", {"methods": list(recipe.methods)})
        if expected:
            write_json(folder.path / record.ESTIMATE_FILE, expected)
        write_json(
            folder.path / "environment.json", provenance.collect(recipe, pick_device(recipe))
        )
        folder.remember_home()
        write_atomic(folder.path / "resolved.yaml", dump_yaml(recipe).encode())
        try:
            return run_pending(recipe, folder)
        except UserError:
            if not (
                folder.path / "data.json"
            ).exists():  # no row was ever read: the command that is mended may name the same folder
                shutil.rmtree(folder.path, ignore_errors=True)
            raise


def select_methods(recipe: Recipe, methods: list[str]) -> Recipe:
    """The recipe with only these of its methods, if any are named. Raises `BadInput` for one that it does not have."""
    unknown = [name for name in methods if name not in recipe.methods]
    if unknown:
        raise UserError(
            f"no method {unknown[0]!r} in this recipe",
            where="--method",
            todo=f"one of: {', '.join(recipe.methods)}",
        )
    if methods:
        recipe.methods = {name: recipe.methods[name] for name in recipe.methods if name in methods}
    return recipe


def extend(recipe_path: str, out: str, sets: list[str] = (), methods: list[str] = ()) -> StudyDir:
    """`tarazu run --extend`: adds methods or seeds to a study. Raises `BadInput` if anything else differs."""
    recipe, folder = select_methods(load(recipe_path, sets), methods), find_study(out)
    old = read_recipe(folder)
    changed = [
        key
        for key in type(old).model_fields
        if key not in ("methods", "seeds") and getattr(old, key) != getattr(recipe, key)
    ]
    changed += [
        f"methods.{name}"
        for name in old.methods
        if name in recipe.methods and old.methods[name] != recipe.methods[name]
    ]
    if changed:
        raise UserError(
            f"the study was made with another {', '.join(changed)}",
            where=out,
            todo="only methods and seeds can be added; start a new study for the rest",
        )
    recipe.methods = {**old.methods, **recipe.methods}
    recipe.seeds = [*old.seeds, *(seed for seed in recipe.seeds if seed not in old.seeds)]
    make_task(recipe.task).admit(recipe)
    with folder.lock():
        with reporting_corruption(folder.path / "environment.json"):
            stamp = provenance.extended(
                folder.read_json("environment.json") or {}, pick_device(recipe)
            )
        write_json(folder.path / "environment.json", stamp)
        write_json(folder.path / "order.json", {"methods": list(recipe.methods)})
        write_atomic(folder.path / "resolved.yaml", dump_yaml(recipe).encode())
        with folder.at_home() as here:
            run_pending(recipe, here)
    return folder


def resume(out: str) -> StudyDir:
    """`tarazu resume`: goes on exactly where the study stopped. Finished runs are left alone."""
    folder = find_study(out)
    with folder.lock():
        recipe = read_recipe(folder)
        if not (folder.path / "order.json").exists():
            write_json(folder.path / "order.json", {"methods": list(recipe.methods)})
        with folder.at_home() as here:
            run_pending(recipe, here)
    return folder


def read_recipe(folder: StudyDir) -> Recipe:
    """The recipe of a study, with its defaults. Raises `BadInput` where it cannot be read."""
    return load(folder.path / "resolved.yaml")


def run_pending(recipe: Recipe, folder: StudyDir) -> StudyDir:
    """Runs what is not done yet, gathers the results and writes the report."""
    device, task = pick_device(recipe), make_task(recipe.task)
    torch.set_float32_matmul_precision("high" if device.type == "cuda" else "highest")
    with StopSignals(str(folder.path)) as stop:
        before = (folder.read_json("data.json") or {}).get("sha256")
        data = task.prepare(recipe, folder, device)
        after = folder.read_json("data.json").get("sha256")
        if before is not None and not isinstance(before, str):
            raise corrupt_file_error(folder.path / "data.json", "`sha256` is not a text")
        if before and before != after:
            raise UserError(
                f"the data changed since this study began (sha256 {before[:12]} is now {after[:12]})",
                where=str(folder.path),
                todo="bring the old data back, or start a new study with --out",
            )
        record.record_missing_estimates(task, recipe, data, device, folder)
        failures = []
        for seed in recipe.seeds:
            for name in recipe.methods:
                if recipe.methods[name].kind == "base" and seed != recipe.seeds[0]:
                    continue  # nothing in it depends on the seed
                one = folder.run(name, seed)
                if not one.done():
                    failures += _run_or_record_failure(
                        task, recipe, name, data, one, device, stop, folder
                    )
                    write_results(task, recipe, folder)
        write_results(task, recipe, folder)
    if failures:
        raise TarazuError(
            "; ".join(failures),
            where=str(folder.path),
            todo="the other methods are done; `tarazu resume` tries again",
        )
    return folder


def _run_or_record_failure(
    task, recipe, name, data, one: RunDir, device, stop, folder
) -> list[str]:
    """Runs one method; what fails is written down, so that the others still run."""
    try:
        run_method(task, recipe, name, data, one, device, stop, folder)
        return []
    except Stopped:
        one.update(status="stopped")
        raise
    except UserError as error:
        one.update(status="failed", error=str(error))
        raise
    except Exception as error:  # whatever it is, the other methods' hours are not lost with it
        one.update(status="failed", error=f"{type(error).__name__}: {error}")
        log(str(error) if isinstance(error, TarazuError) else traceback.format_exc())
        return [f"{name} seed {one.seed}: {error}"]
    finally:
        free_memory(device)


def free_memory(device: torch.device) -> None:
    """Gives back what nobody uses any more: a model's parts know each other, so only the collector finds them."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def run_method(
    task,
    recipe: Recipe,
    name: str,
    data,
    one: RunDir,
    device: torch.device,
    stop: StopSignals,
    folder: StudyDir,
) -> None:
    """One method with one seed, from loading to metrics."""
    found = run_or_load_search(task, recipe, name, data, device, stop, folder)
    free_memory(device)  # what the trials held must not count as this run's memory
    if found:
        recipe = recipe.with_method(name, recipe.methods[name].model_copy(update=found["winner"]))
    method, ledger = recipe.methods[name], Ledger(device)
    one.update(
        name=name,
        kind=method.kind,
        seed=one.seed,
        settings=method.model_dump(mode="json"),
        status="running",
        error=None,
    )
    with ledger.phase("load"):
        model = task.build(recipe, name, data, one.seed, device, folder)
    trained = sum(p.numel() for p in model.trainable().values())
    total = model.total_parameters()
    one.update(trained_parameters=trained, total_parameters=total, targets=task.targets(model))
    log(
        f"{name}: {trained:,} of {total:,} parameters may change ({describe_trainable(model.may_change)})"
    )
    if model.may_change:
        with ledger.phase("fingerprint"):
            before = fingerprint.fingerprint(model.module)
        trainer.train(task, model, data, recipe, method, one, one.seed, ledger, stop)
        with ledger.phase("fingerprint"):
            proof = fingerprint.compare(
                before,
                fingerprint.fingerprint(model.module),
                model.may_change,
                model.waiting(),
            )
        write_json(one.path / "fingerprint.json", proof)
        fingerprint.require_ok(proof, str(one.path))
    model.module.eval()
    log(f"{name}: evaluating on the test split")
    with torch.no_grad(), trainer.autocast(recipe.budget, device):
        metrics = task.evaluate(model, data, recipe, one.path, ledger)
    ledger.paths = task.paths(model, data)
    size, disk = one.weights.stat().st_size if one.weights.exists() else 0, one.bytes()
    if found:
        ledger.seconds["search"] = found["seconds"]
    with trainer.autocast(recipe.budget, device):
        arithmetic = flops.figures(task, model, data, recipe, ledger)
    costs_of_search = {"search_tokens": found["tokens"]} if found else {}
    write_json(
        one.path / "ledger.json",
        {
            **ledger.as_json(),
            **arithmetic,
            **costs_of_search,
            "trained_parameters": trained,
            "total_parameters": total,
            "weights_bytes": size,
            "disk_bytes": disk,
        },
    )
    write_json(one.path / "metrics.json", metrics)
    one.update(status="done")
    shutil.rmtree(
        one.path / "checkpoint", ignore_errors=True
    )  # the weights are saved and proven: nothing goes back to these
    (one.path / "best.safetensors").unlink(missing_ok=True)


def describe_trainable(names: frozenset[str]) -> str:
    """The parts that hold the named tensors, in few words: blocks by number, other parts by name."""
    blocks = sorted(
        {int(found[1]) for name in names if (found := re.search(r"\.layers\.(\d+)\.", f".{name}"))}
    )
    others = sorted(
        {name.rsplit(".", 1)[0] for name in names if not re.search(r"\.layers\.\d+\.", f".{name}")}
    )
    parts = (
        [f"blocks {', '.join(map(str, blocks))}"] * bool(blocks)
        + others[:4]
        + ["..."] * (len(others) > 4)
    )
    return "; ".join(parts) or "nothing"


def write_results(task, recipe: Recipe, folder: StudyDir) -> None:
    """Writes results.json: one flat row per method and seed."""
    rows = []
    for one in folder.runs():
        state, ledger, metrics = (
            one.read_json(f"{name}.json") or {} for name in ("run", "ledger", "metrics")
        )
        with reporting_corruption(one.path / "run.json"):
            trained, total = state.get("trained_parameters"), state.get("total_parameters")
            row = {
                "method": one.name,
                "kind": state.get("kind"),
                "seed": one.seed,
                "status": state.get("status"),
                "trained_parameters": trained,
            }
            row["trained_share"] = trained / total if total else None
        if ledger:
            with reporting_corruption(one.path / "ledger.json"):
                row |= cost_summary(ledger)
        if metrics:
            with reporting_corruption(one.path / "metrics.json"):
                row |= task.summary(metrics)
        rows.append(row)
    write_json(
        folder.path / "results.json",
        {
            "task": recipe.task,
            "rows": rows,
            "generated": datetime.now(UTC).isoformat(timespec="seconds"),
        },
    )


def cost_summary(ledger: dict) -> dict:
    """What a run took, for its row of results.json."""
    memory = ledger["train_memory"]
    row = {
        "train_seconds": ledger["seconds"].get("train"),
        "train_memory": memory["allocated"] or memory["resident"],
    }
    return row | {
        "tokens_per_second": ledger["tokens_per_second"],
        "weights_bytes": ledger["weights_bytes"],
    }


def pick_device(recipe: Recipe) -> torch.device:
    """The recipe's device; auto takes a GPU where there is one."""
    if recipe.device == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(recipe.device)
    except RuntimeError:
        raise UserError(
            f"unknown device {recipe.device!r}", where="device", todo="auto, cpu, cuda or cuda:N"
        ) from None
    if device.type == "cuda" and not (
        torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()
    ):
        raise UserError(
            f"this machine has no usable device {recipe.device}",
            where="device",
            todo="device: auto, or cpu",
        )
    if device.type == "cuda" and device.index:
        torch.cuda.set_device(
            device
        )  # streams, events and kernels of ours are made on the process's own
    return torch.device("cuda:0") if device == torch.device("cuda") else device


def make_task(name: str):
    """The task object of a recipe's `task`."""
    module, _, attribute = TASKS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)()
