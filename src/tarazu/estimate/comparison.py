"""An estimate compared with the finished runs of a study."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from tarazu.storage.atomic_io import reporting_corruption
from tarazu.storage.run_folder import RunDir


def compare_with_runs(estimate: dict[str, Any], runs: Iterable[RunDir]) -> list[dict[str, Any]]:
    """Compare an estimate with finished runs.

    Returns:
        For each run and metric: `estimated`, `actual`, and their `ratio`, actual / estimated.

    Raises:
        UserError: a ledger.json is damaged.
    """
    entries = {entry["method"]: entry for entry in estimate["methods"]}
    rows = []
    for run in runs:
        ledger, entry = run.read_json("ledger.json"), entries.get(run.name)
        if not ledger or not entry or not entry["seconds"]:
            continue
        with reporting_corruption(run.path / "ledger.json"):
            actual = _actual_metrics(ledger, entry["seconds"])
        for metric, estimated in _estimated_metrics(entry, run.seed):
            value = actual.get(metric)
            rows.append(
                {
                    "method": run.name,
                    "seed": run.seed,
                    "metric": metric,
                    "estimated": estimated,
                    "actual": value,
                    "ratio": value / estimated if value is not None and estimated else None,
                }
            )
    return rows


def _actual_metrics(ledger: dict[str, Any], phases: Iterable[str]) -> dict[str, float | None]:
    """Seconds of the estimated phases, speed and memory, from a run's ledger."""
    seconds = {f"{phase} (s)": ledger["seconds"].get(phase) for phase in phases if phase != "total"}
    memory_bytes = ledger["train_memory"]["allocated"] or ledger["train_memory"]["resident"]
    return {
        **seconds,
        "total (s)": sum(value or 0.0 for value in seconds.values()),
        "tokens/s": ledger["tokens_per_second"],
        "memory (bytes)": memory_bytes,
    }


def _estimated_metrics(entry: dict[str, Any], seed: int) -> Iterator[tuple[str, float | None]]:
    """The metrics of `_actual_metrics` as an entry estimates them for a seed."""
    entry = {**entry, **entry.get("by_seed", {}).get(str(seed), {})}
    phases = {phase: value for phase, value in entry["seconds"].items() if phase != "total"}
    if "train" in entry:
        phases["train"] = entry["train"]
    for phase, value in phases.items():
        yield f"{phase} (s)", value
    yield "total (s)", sum(phases.values())
    yield "tokens/s", entry["tokens_per_second"]
    yield "memory (bytes)", entry["memory"]
