"""Hyperparameter search with a token budget: successive halving on validation loss.

The method is that of Jamieson and Talwalkar 2015, arXiv:1502.07943. Each tuning method of a study
searches its own settings, because a learning rate that suits one method may be bad for another.
The rounds of every method have the same budget, `search.tokens`. Learning rates beyond the recipe's
list (step 3) cost extra tokens, at most `max_extended_tokens`, which search.json reports.

1. Every combination of the searched settings is a candidate.
2. In each round all remaining candidates train, and the better half stays. All rounds have the same
   number of tokens, so each candidate trains longer when fewer are left. The last round has two
   candidates (one, if there is only one from the start), and its best is the winner.
3. If the winner's learning rate is the lowest or highest that was tried, a better one may lie
   beyond it. A rate three times lower or higher then goes through the same rounds. It is dropped
   after the first round in which its loss exceeds that of the worst candidate that stayed. This
   step is done at most twice.

In every round a candidate trains from its initial weights, with the recipe's own schedule scaled to
the tokens of the round. The usual form of successive halving resumes the survivors at a constant
learning rate. That costs fewer tokens but favours low rates: the loss at a high rate is noisy until
the rate decays (Hägele et al. 2024, arXiv:2405.18392).

This module decides what is tried. `study/hyperparameter_search.py` trains the trials.
"""

from __future__ import annotations

import itertools
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tarazu.engine.progress import log
from tarazu.recipe.schema import NO_VALIDATION, Budget, Method, Search
from tarazu.storage.atomic_io import read_json, replace_nonfinite, reporting_corruption, write_json
from tarazu.storage.run_folder import RunDir

WIDEN_FACTOR = 3.0  # ratio of a learning rate beyond the list to the nearest one that was tried
WIDENINGS = 2  # maximum number of learning rates beyond the list

TrainTrial = Callable[[Method, Budget, RunDir], float | None]


@dataclass
class Candidate:
    """A combination of settings that is tried.

    Args:
        settings: values by the names of the searched settings.
        round_results: tokens, validation loss (None if not finite) and seconds of each finished
            round.
        extended: whether the learning rate lies beyond the recipe's list.
    """

    settings: dict[str, float]
    round_results: list[dict[str, Any]] = field(default_factory=list)
    extended: bool = False

    def loss(self) -> float:
        """Validation loss of the last round; infinity if it was not finite or there was none."""
        last = self.round_results[-1]["loss"] if self.round_results else None
        return math.inf if last is None else last

    @property
    def name(self) -> str:
        """The settings as text, for folder names and rounds.json."""
        return "-".join(f"{key}={value:g}" for key, value in self.settings.items())

    def as_json(self) -> dict[str, Any]:
        """The candidate as search.json holds it."""
        extended = {"extended": True} if self.extended else {}
        return {"settings": self.settings, "rounds": self.round_results, **extended}


def candidates(search: Search, method: Method) -> list[Candidate]:
    """Every combination of the searched settings that the method has."""
    own_settings = type(method).model_fields
    lists = {name: values for name, values in search.grid().items() if name in own_settings}
    combinations = itertools.product(*lists.values())
    return [Candidate(dict(zip(lists, values, strict=True))) for values in combinations]


def plan_rounds(num_candidates: int, tokens: int) -> list[tuple[int, int]]:
    """Divide the tokens of a search among its rounds, and those of a round among its candidates.

    Args:
        num_candidates: candidates of the first round.
        tokens: training tokens of all rounds together.

    Returns:
        (number of candidates, tokens of each candidate) by round. The products add up to at most
        `tokens`.
    """
    sizes = [num_candidates]
    while sizes[-1] > 2:
        sizes.append(math.ceil(sizes[-1] / 2))
    return [(size, tokens // len(sizes) // size) for size in sizes]


def max_extended_tokens(num_candidates: int, tokens: int) -> int:
    """Maximum number of tokens that learning rates beyond the list may add to a search.

    Args:
        num_candidates: candidates of the first round.
        tokens: training tokens of all rounds together.
    """
    tokens_of_one_rate = sum(tokens for _, tokens in plan_rounds(num_candidates, tokens))
    return WIDENINGS * tokens_of_one_rate


def round_budget(budget: Budget, tokens: int) -> Budget:
    """The budget of a trial: the recipe's own with `tokens` as its length, validated at its end."""
    changes = {
        "tokens": tokens,
        "epochs": None,
        "evaluate_every": NO_VALIDATION,
        "keep": "last",
        "patience": None,
        "monitor": "loss",
    }
    return budget.model_copy(update=changes)


@dataclass
class Trials:
    """Train candidates round by round.

    Each result is written to rounds.json at once, so that a stopped search can be resumed.

    Args:
        method: the method that is searched.
        budget: the recipe's budget.
        folder: where trials write.
        train: trains one trial.
        tokens_per_round: tokens of a candidate in each round.
        results: the results of a candidate's rounds by its name. They start with those of a search
            that was stopped.
    """

    method: Method
    budget: Budget
    folder: RunDir
    train: TrainTrial
    tokens_per_round: list[int]
    results: dict[str, list[dict[str, Any]]]
    tokens: int = 0  # of all rounds so far
    seconds: float = 0.0  # of all rounds so far

    def run_round(self, candidate: Candidate, number: int) -> None:
        """Train a candidate in round `number`, and add the result to its `round_results`.

        A result that a stopped search has written is taken from there, without training.
        """
        results = self.results.setdefault(candidate.name, [])
        if number >= len(results):
            results.append(self._train_round(candidate, self.tokens_per_round[number]))
            write_json(self.folder.path / "rounds.json", self.results)
        candidate.round_results.append(results[number])
        self.tokens += self.tokens_per_round[number]
        self.seconds += results[number].get("seconds", 0.0)

    def _train_round(self, candidate: Candidate, tokens: int) -> dict[str, Any]:
        """Train one trial and remove its folder.

        The trial starts from the initial weights, or from its checkpoint if a signal stopped it.
        """
        start = time.monotonic()
        trial_folder = self.folder.path / f"{candidate.name}-{tokens}-tokens"
        trial = RunDir(trial_folder / f"seed-{self.folder.seed}")
        method = self.method.model_copy(update=candidate.settings)
        loss = self.train(method, round_budget(self.budget, tokens), trial)
        shutil.rmtree(trial_folder, ignore_errors=True)
        log(f"search {candidate.name}: {tokens} tokens, validation loss {loss}")
        seconds = time.monotonic() - start
        return {"tokens": tokens, "loss": replace_nonfinite(loss), "seconds": seconds}


def run_search(
    search: Search, method: Method, budget: Budget, folder: RunDir, train: TrainTrial
) -> dict[str, Any]:
    """Find the settings with which a method has the lowest validation loss.

    Args:
        search: the lists of values to try and the tokens of the search.
        method: the method with its other settings.
        budget: the recipe's budget.
        folder: where trials write. It is removed at the end; a search that was stopped resumes
            from it.
        train: trains a method under a budget in a run's folder and returns the validation loss.
            It resumes from a checkpoint in that folder.

    Returns:
        The contents of `search.json`: all candidates with their losses, the winner, the cost, and
        the settings whose winning value is the smallest or largest that was tried.

    Raises:
        UserError: the results of a stopped search are damaged.
    """
    tried = candidates(search, method)
    plan = plan_rounds(len(tried), search.tokens)
    tokens_per_round = [tokens for _, tokens in plan]
    results = _resume_results(folder)
    trials = Trials(method, budget, folder, train, tokens_per_round, results)

    winner, cutoffs = _halve(trials, tried, [size for size, _ in plan])
    grid_tokens = trials.tokens
    if search.extend_range and math.isfinite(winner.loss()):
        winner = _extend(trials, tried, winner, cutoffs)
    shutil.rmtree(folder.path, ignore_errors=True)
    return {
        "schedule": budget.schedule,
        "tokens": trials.tokens,
        "tokens_extended": trials.tokens - grid_tokens,
        "seconds": trials.seconds,
        "candidates": [candidate.as_json() for candidate in tried],
        "winner": winner.settings,
        "loss": replace_nonfinite(winner.loss()),
        "edges": edges(tried, winner.settings),
    }


def _resume_results(folder: RunDir) -> dict[str, list[dict[str, Any]]]:
    """The results of the rounds that a stopped search has finished, by candidate.

    Raises:
        UserError: rounds.json is damaged.
    """
    path = folder.path / "rounds.json"
    stored = read_json(path, {})
    with reporting_corruption(path):
        # An entry without `tokens` raises a KeyError, which becomes an error that names the file.
        return {
            name: [{"tokens": result["tokens"], **result} for result in results]
            for name, results in stored.items()
        }


def _halve(
    trials: Trials, everyone: list[Candidate], sizes: list[int]
) -> tuple[Candidate, list[float]]:
    """Train in all rounds, and keep the better half after each.

    Args:
        trials: trains the candidates.
        everyone: the candidates of the first round.
        sizes: number of candidates of each round.

    Returns:
        The winner; and the cutoff of each round, which is the highest loss of a candidate that
        stayed.
    """
    remaining, cutoffs = list(everyone), []
    for number, size in enumerate(sizes):
        # Every remaining candidate trains from its initial weights, for more tokens in each round.
        for candidate in remaining:
            trials.run_round(candidate, number)
        # The better half stays; of two, the winner. Diverged candidates have infinite loss.
        num_kept = math.ceil(size / 2) if size > 2 else 1
        remaining = sorted(remaining, key=Candidate.loss)[:num_kept]
        cutoffs.append(remaining[-1].loss())
    return remaining[0], cutoffs


def _extend(
    trials: Trials, tried: list[Candidate], winner: Candidate, cutoffs: list[float]
) -> Candidate:
    """Try learning rates beyond the list, and return the winner of all candidates.

    Args:
        trials: trains the candidates.
        tried: all candidates so far. The new ones are added.
        winner: the winner so far.
        cutoffs: the highest loss that stayed in each round.
    """
    for _ in range(WIDENINGS):
        rate = _rate_beyond_edge(tried, winner)
        if rate is None:
            break
        candidate = Candidate({**winner.settings, "learning_rate": rate}, extended=True)
        tried.append(candidate)
        # The candidate goes through the same rounds as the others. It stops after the first one in
        # which it would have been dropped.
        for number, cutoff in enumerate(cutoffs):
            trials.run_round(candidate, number)
            if candidate.loss() > cutoff:
                break
        finished = len(candidate.round_results) == len(cutoffs)
        if finished and candidate.loss() < winner.loss():
            winner = candidate
    return winner


def _rate_beyond_edge(tried: list[Candidate], winner: Candidate) -> float | None:
    """The next learning rate to try, rounded to two digits.

    Returns:
        A rate below the winner's if that is the lowest that was tried, or above it if it is the
        highest; None if it is neither.
    """
    if "learning_rate" not in edges(tried, winner.settings):
        return None
    rate = winner.settings["learning_rate"]
    is_lowest = rate == min(candidate.settings["learning_rate"] for candidate in tried)
    return float(f"{rate / WIDEN_FACTOR if is_lowest else rate * WIDEN_FACTOR:.2g}")


def edges(tried: list[Candidate], settings: dict[str, float]) -> list[str]:
    """The searched settings whose value is the smallest or largest that was tried."""
    at_edge = []
    for name, value in settings.items():
        values = {candidate.settings[name] for candidate in tried}
        if len(values) > 1 and value in (min(values), max(values)):
            at_edge.append(name)
    return at_edge
