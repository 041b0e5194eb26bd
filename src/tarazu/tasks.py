"""The registry of tasks: the one file that names them.

A task of another package registers itself by an entry point of the group `tarazu.tasks`, whose
value is a `TaskEntry`:

    [project.entry-points."tarazu.tasks"]
    digits = "digits:TASK"

Parts are import strings, so that `--help`, recipes and reports load no torch.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import Any

GROUP = "tarazu.tasks"


@dataclass(frozen=True)
class TaskEntry:
    """Where the parts of a task are, each as `package.module:attribute`.

    Args:
        recipe: the recipe class, a subclass of `tarazu.recipe.schema.Recipe`. Must not import
            torch.
        task: the subclass of `tarazu.engine.task.Task`.
        report: the `TaskReport` of the task's report sections, or empty for the general report.
            Must not import torch.
        columns: columns of the terminal's results table: key in results.json, title, format.
    """

    recipe: str
    task: str
    report: str = ""
    columns: tuple[tuple[str, str, str], ...] = (("loss", "loss", "{:.3f}"),)


BUILT_IN = {
    "chat": TaskEntry(
        recipe="tarazu.chat.settings:ChatRecipe",
        task="tarazu.chat.task:Chat",
        report="tarazu.report.sections.chat:REPORT",
        columns=(
            ("loss", "loss", "{:.3f}"),
            ("bits_per_byte", "bits/byte", "{:.3f}"),
            ("chrf", "chrF", "{:.1f}"),
            ("rouge_l", "ROUGE-L", "{:.1f}"),
            ("checks_passed", "checks", "{:.0%}"),
            ("repetition", "repeats", "{:.0%}"),
        ),
    ),
    "captions": TaskEntry(
        recipe="tarazu.captions.settings:CaptionsRecipe",
        task="tarazu.captions.task:Captions",
        report="tarazu.report.sections.captions:REPORT",
        columns=(
            ("loss", "loss", "{:.3f}"),
            ("bleu1", "BLEU-1", "{:.1f}"),
            ("bleu4", "BLEU-4", "{:.1f}"),
            ("cider", "CIDEr", "{:.1f}"),
            ("rouge_l", "ROUGE-L", "{:.1f}"),
        ),
    ),
}


@cache
def entries() -> dict[str, TaskEntry]:
    """Every known task by name: the built-in ones, then those of entry points."""
    installed = {point.name: point.load() for point in entry_points(group=GROUP)}
    return {**installed, **BUILT_IN}


def names() -> list[str]:
    """Names that a recipe's `task` can have."""
    return sorted(entries())


def recipe_class(name: str) -> type[Any]:
    """The recipe class of a task. Raises `KeyError` for an unknown task."""
    attribute: type[Any] = _attribute(entries()[name].recipe)
    return attribute


def make_task(name: str) -> Any:
    """A new `Task` object. Loads torch. Raises `KeyError` for an unknown task."""
    return _attribute(entries()[name].task)()


def report_of(name: str | None) -> Any:
    """The `TaskReport` of a task, or None where the task is unknown or has none."""
    entry = entries().get(name) if name else None
    return _attribute(entry.report) if entry and entry.report else None


def columns(name: str | None) -> tuple[tuple[str, str, str], ...]:
    """Columns of a task's results table: key in results.json, title, format."""
    entry = entries().get(name) if name else None
    return entry.columns if entry else TaskEntry.columns


def _attribute(path: str) -> Any:
    """The attribute that `package.module:attribute` names."""
    module, _, attribute = path.partition(":")
    return getattr(importlib.import_module(module), attribute)
