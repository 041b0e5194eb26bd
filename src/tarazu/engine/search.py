"""A small, equal search for every method's settings: successive halving on validation loss (Jamieson & Talwalkar 2015).

One learning rate for all methods decides a comparison before it starts. Every method gets the same tokens to search with:
all candidates train a little, the better half goes on, until one is left. A candidate's training continues from its
checkpoint, at a constant rate, so nothing is trained twice.
"""

from __future__ import annotations

import itertools
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field

from tarazu.engine.progress import note
from tarazu.recipe import Budget, Method, Search
from tarazu.run_folder import Run, finite, read_json, write_json


@dataclass
class Candidate:
    """Settings under trial, and the validation loss after each round (None: not finite)."""

    settings: dict[str, float]
    rounds: list[dict] = field(default_factory=list)

    def loss(self) -> float:
        last = self.rounds[-1]["loss"] if self.rounds else None
        return math.inf if last is None else last


def candidates(search: Search, method: Method) -> list[Candidate]:
    """Every combination of the searched settings that this method has."""
    lists = {name: values for name, values in search.grid().items() if name in type(method).model_fields}
    return [Candidate(dict(zip(lists, values, strict=True))) for values in itertools.product(*lists.values())]


def plan(count: int, tokens: int) -> list[tuple[int, int]]:
    """(candidates, tokens for each of them in this round) until two are compared; the products add up to at most `tokens`."""
    sizes = [count]
    while sizes[-1] > 2:
        sizes.append(math.ceil(sizes[-1] / 2))
    return [(size, tokens // len(sizes) // size) for size in sizes]


def round_budget(budget: Budget, before: int, tokens: int, first: int) -> Budget:
    """The budget that takes a candidate from `before` tokens to `before + tokens`, at a constant rate after one warm-up."""
    total = before + tokens
    return budget.model_copy(
        update={"tokens": total, "epochs": None, "schedule": "constant", "warmup": 0.2 * first / total, "evaluate_every": 10**12, "keep": "last", "patience": None, "watch": "loss"}
    )


def halve(search: Search, method: Method, budget: Budget, folder: Run, train: Callable[[Method, Budget, Run], float | None]) -> dict:
    """Runs the search.

    Args:
        folder: where candidates keep their checkpoints (removed at the end).
        train: trains a method under a budget in a run's folder, going on from what is there; returns the validation loss.

    Returns: what `search.json` holds: every candidate's losses, the winner, and whether it stands at an edge of the grid.
    """
    alive = candidates(search, method)
    known = read_json(folder.path / "rounds.json", {})  # of a search that was stopped
    everyone, used, first = list(alive), 0, None
    for number, (count, tokens) in enumerate(plan(len(alive), search.tokens)):
        first = first or tokens
        for candidate in alive:
            name = "-".join(f"{key}={value:g}" for key, value in candidate.settings.items())
            if number >= len(known.setdefault(name, [])):
                before = candidate.rounds[-1]["tokens"] if candidate.rounds else 0
                trial = Run(folder.path / name / f"seed-{folder.seed}")
                loss = train(method.model_copy(update=candidate.settings), round_budget(budget, before, tokens, first), trial)
                known[name].append({"tokens": before + tokens, "loss": finite(loss)})
                write_json(folder.path / "rounds.json", known)
                note(f"search {name}: {before + tokens} tokens, validation loss {loss}")
            candidate.rounds.append(known[name][number])
            used += tokens
        alive = sorted(alive, key=Candidate.loss)[: max(1, math.ceil(count / 2))] if count > 2 else sorted(alive, key=Candidate.loss)[:1]
    shutil.rmtree(folder.path, ignore_errors=True)
    winner = alive[0]
    return {
        "tokens": used,
        "candidates": [{"settings": c.settings, "rounds": c.rounds} for c in everyone],
        "winner": winner.settings,
        "loss": winner.rounds[-1]["loss"],
        "edges": edges(search, winner.settings),
    }


def edges(search: Search, settings: dict[str, float]) -> list[str]:
    """The searched settings whose winner is the smallest or the largest tried: the best may lie beyond."""
    return [name for name, value in settings.items() if len(search.grid()[name]) > 1 and value in (min(search.grid()[name]), max(search.grid()[name]))]
