"""A small, equal search for every method's settings: successive halving on validation loss (Jamieson & Talwalkar 2015).

One learning rate for all methods decides a comparison before it starts. Every method gets the same tokens to search with:
all candidates train a little, the better half trains more, until one is left. What is compared are whole runs in small:
in every round a candidate begins anew and goes through the recipe's own schedule, warm-up and decay included. Going on
from the last round at a constant rate would cost fewer tokens, but it measures rates where they do not work: a high rate
is noisy until it decays, so small ones win that the real run would not have chosen (a cosine and a constant rate with a
decay want different peaks: Hägele et al. 2024, arXiv:2405.18392).

A winner at an edge of the rates proves little: the best may lie beyond. So a rate three times further out is trained as if
it had been in the list (the same tokens stage by stage, out as soon as it would not have gone on), at most twice.
"""

from __future__ import annotations

import itertools
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from tarazu.engine.progress import log
from tarazu.recipe.schema import Budget, Method, Search
from tarazu.storage.atomic_io import read_json, replace_nonfinite, reporting_corruption, write_json
from tarazu.storage.run_folder import RunDir

WIDEN_FACTOR, WIDENINGS = 3.0, 2  # how far beyond an edge the next rate lies, and how many times
Train = Callable[[Method, Budget, RunDir], float | None]


@dataclass
class Candidate:
    """Settings under trial, and the validation loss after each round (None: not finite). `extended`: not of the grid."""

    settings: dict[str, float]
    rounds: list[dict] = field(default_factory=list)
    extended: bool = False

    def loss(self) -> float:
        last = self.rounds[-1]["loss"] if self.rounds else None
        return math.inf if last is None else last

    @property
    def name(self) -> str:
        return "-".join(f"{key}={value:g}" for key, value in self.settings.items())

    def as_json(self) -> dict:
        return {
            "settings": self.settings,
            "rounds": self.rounds,
            **({"extended": True} if self.extended else {}),
        }


def candidates(search: Search, method: Method) -> list[Candidate]:
    """Every combination of the searched settings that this method has."""
    lists = {
        name: values for name, values in search.grid().items() if name in type(method).model_fields
    }
    return [
        Candidate(dict(zip(lists, values, strict=True)))
        for values in itertools.product(*lists.values())
    ]


def rounds(count: int, tokens: int) -> list[tuple[int, int]]:
    """(candidates, tokens of the run of each in this round) until two are compared; the products add up to at most `tokens`."""
    sizes = [count]
    while sizes[-1] > 2:
        sizes.append(math.ceil(sizes[-1] / 2))
    return [(size, tokens // len(sizes) // size) for size in sizes]


def max_extended_tokens(count: int, tokens: int) -> int:
    """The most tokens that a search of `count` candidates may take besides, for rates beyond an edge."""
    return WIDENINGS * sum(each for _, each in rounds(count, tokens))


def round_budget(budget: Budget, tokens: int) -> Budget:
    """The budget of a trial: the recipe's own, with its schedule, drawn together into `tokens`; validated at its end."""
    whole = {"evaluate_every": 10**12, "keep": "last", "patience": None, "monitor": "loss"}
    return budget.model_copy(update={"tokens": tokens, "epochs": None, **whole})


@dataclass
class Trials:
    """Trains candidates round by round; what is known of them is in a file, so that a stopped search goes on."""

    method: Method
    budget: Budget
    folder: RunDir
    train: Train
    rounds: list[int]  # tokens of each
    known: dict[str, list[dict]]
    tokens: int = 0
    seconds: float = 0.0

    def advance(self, candidate: Candidate, number: int) -> None:
        """Takes a candidate through one round: a run in small, then its validation loss."""
        done, tokens = self.known.setdefault(candidate.name, []), self.rounds[number]
        if number >= len(done):
            began = time.monotonic()
            trial = RunDir(
                self.folder.path / f"{candidate.name}-{tokens}-tokens" / f"seed-{self.folder.seed}"
            )
            loss = self.train(
                self.method.model_copy(update=candidate.settings),
                round_budget(self.budget, tokens),
                trial,
            )
            done.append(
                {
                    "tokens": tokens,
                    "loss": replace_nonfinite(loss),
                    "seconds": time.monotonic() - began,
                }
            )
            write_json(self.folder.path / "rounds.json", self.known)
            shutil.rmtree(trial.path.parent, ignore_errors=True)
            log(f"search {candidate.name}: {tokens} tokens, validation loss {loss}")
        candidate.rounds.append(done[number])
        self.tokens += tokens
        self.seconds += done[number].get("seconds", 0.0)


def run_search(search: Search, method: Method, budget: Budget, folder: RunDir, train: Train) -> dict:
    """Runs the search.

    Args:
        folder: where trials keep their checkpoints (removed at the end).
        train: trains a method under a budget in a run's folder, from the start (or from where a stopped search left it
            there); returns the validation loss.

    Returns: what `search.json` holds: every candidate's losses, the winner, the cost, and whether the winner stands at an
    edge of what was tried.
    """
    everyone = candidates(search, method)
    stages = rounds(len(everyone), search.tokens)
    known = folder.path / "rounds.json"  # of a search that was stopped
    trials = Trials(
        method, budget, folder, train, [tokens for _, tokens in stages], read_json(known, {})
    )
    with reporting_corruption(known):
        trials.known = {
            name: [{"tokens": r["tokens"], **r} for r in rounds]
            for name, rounds in trials.known.items()
        }
    winner, bars = _halved(trials, everyone, [count for count, _ in stages])
    of_the_grid = trials.tokens
    if search.extend_range and math.isfinite(winner.loss()):
        winner = _widened(trials, everyone, winner, bars)
    shutil.rmtree(folder.path, ignore_errors=True)
    return {
        "schedule": budget.schedule,
        "tokens": trials.tokens,
        "tokens_extended": trials.tokens - of_the_grid,
        "seconds": trials.seconds,
        "candidates": [candidate.as_json() for candidate in everyone],
        "winner": winner.settings,
        "loss": replace_nonfinite(winner.loss()),
        "edges": edges(everyone, winner.settings),
    }


def _halved(
    trials: Trials, everyone: list[Candidate], counts: list[int]
) -> tuple[Candidate, list[float]]:
    """The winner, and of each round the worst loss that still went on."""
    alive, bars = list(everyone), []
    for number, count in enumerate(counts):
        for candidate in alive:
            trials.advance(candidate, number)
        alive = sorted(alive, key=Candidate.loss)[: math.ceil(count / 2) if count > 2 else 1]
        bars.append(alive[-1].loss())
    return alive[0], bars


def _widened(
    trials: Trials, everyone: list[Candidate], winner: Candidate, bars: list[float]
) -> Candidate:
    """The winner after rates beyond the edge had their try; they join `everyone`."""
    for _ in range(WIDENINGS):
        rate = _further(everyone, winner)
        if rate is None:
            break
        fresh = Candidate({**winner.settings, "learning_rate": rate}, extended=True)
        everyone.append(fresh)
        for number, bar in enumerate(bars):
            trials.advance(fresh, number)
            if fresh.loss() > bar:
                break
        if len(fresh.rounds) == len(bars) and fresh.loss() < winner.loss():
            winner = fresh
    return winner


def _further(everyone: list[Candidate], winner: Candidate) -> float | None:
    """A rate beyond the edge that the winner's stands at (two significant digits); None where it stands inside."""
    if "learning_rate" not in edges(everyone, winner.settings):
        return None
    rate = winner.settings["learning_rate"]
    lowest = rate == min(candidate.settings["learning_rate"] for candidate in everyone)
    return float(f"{rate / WIDEN_FACTOR if lowest else rate * WIDEN_FACTOR:.2g}")


def edges(everyone: list[Candidate], settings: dict[str, float]) -> list[str]:
    """The searched settings whose winner is the smallest or the largest tried: the best may lie beyond."""
    tried = {name: {candidate.settings[name] for candidate in everyone} for name in settings}
    return [
        name
        for name, value in settings.items()
        if len(tried[name]) > 1 and value in (min(tried[name]), max(tried[name]))
    ]
