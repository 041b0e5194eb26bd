"""Hyperparameter search at equal cost: successive halving on validation loss.

Jamieson and Talwalkar 2015, arXiv:1502.07943. Every method gets the same number of tokens for its
search, because one learning rate for all methods would decide a comparison before it starts.

1. Every combination of the searched settings is a candidate.
2. In each round all remaining candidates train, and the better half stays. The rounds have equal
   tokens, so each candidate trains longer when fewer are left. The last round has two candidates.
3. If the winner's learning rate is at an edge of its list, the best rate may lie beyond. A rate
   three times further out then goes through the same rounds. It is dropped at the first round in
   which its loss is above the worst that stayed. This is repeated at most twice.

In every round a candidate starts from the beginning, with the recipe's own schedule scaled to the
tokens of the round. Continuing the last round at a constant rate would cost fewer tokens, but it
would choose other rates: a high rate is noisy until it decays, so a constant schedule prefers lower
rates than the real run needs (Hägele et al. 2024, arXiv:2405.18392).
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
from tarazu.recipe.schema import Budget, Method, Search
from tarazu.storage.atomic_io import read_json, replace_nonfinite, reporting_corruption, write_json
from tarazu.storage.run_folder import RunDir

WIDEN_FACTOR = 3.0  # between an edge of the learning rates and the next rate beyond it
WIDENINGS = 2  # rates beyond an edge, at most
NO_VALIDATION = 10**12  # tokens between validations: only the end of a trial is validated

TrainTrial = Callable[[Method, Budget, RunDir], float | None]


@dataclass
class Candidate:
    """Settings that are tried.

    Args:
        settings: value by setting.
        rounds: tokens, validation loss (None if not finite) and seconds of each finished round.
        extended: whether the learning rate lies beyond the recipe's list.
    """

    settings: dict[str, float]
    rounds: list[dict[str, Any]] = field(default_factory=list)
    extended: bool = False

    def loss(self) -> float:
        """Validation loss of the last round; infinity if it was not finite or there was none."""
        last = self.rounds[-1]["loss"] if self.rounds else None
        return math.inf if last is None else last

    @property
    def name(self) -> str:
        """The settings as text, for folder names and rounds.json."""
        return "-".join(f"{key}={value:g}" for key, value in self.settings.items())

    def as_json(self) -> dict[str, Any]:
        """The candidate as search.json holds it."""
        extended = {"extended": True} if self.extended else {}
        return {"settings": self.settings, "rounds": self.rounds, **extended}


def candidates(search: Search, method: Method) -> list[Candidate]:
    """Every combination of the searched settings that the method has."""
    own_settings = type(method).model_fields
    lists = {name: values for name, values in search.grid().items() if name in own_settings}
    combinations = itertools.product(*lists.values())
    return [Candidate(dict(zip(lists, values, strict=True))) for values in combinations]


def rounds(num_candidates: int, tokens: int) -> list[tuple[int, int]]:
    """Plan the rounds of a search.

    Args:
        num_candidates: candidates of the first round.
        tokens: training tokens of the whole search.

    Returns:
        (candidates, tokens of each candidate) by round. The products add up to at most `tokens`.
    """
    sizes = [num_candidates]
    while sizes[-1] > 2:
        sizes.append(math.ceil(sizes[-1] / 2))
    return [(size, tokens // len(sizes) // size) for size in sizes]


def max_extended_tokens(num_candidates: int, tokens: int) -> int:
    """Largest number of tokens that rates beyond an edge may add to a search."""
    return WIDENINGS * sum(per_candidate for _, per_candidate in rounds(num_candidates, tokens))


def round_budget(budget: Budget, tokens: int) -> Budget:
    """The budget of a trial: the recipe's own, scaled to `tokens`, validated at its end."""
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
    """Train candidates round by round. Results go to rounds.json, so that a search can be resumed.

    Args:
        method: the method that is searched.
        budget: the recipe's budget.
        folder: where trials write.
        train: trains one trial.
        tokens_per_round: tokens of a candidate in each round.
        results: rounds by name of the candidate, also of a search that was stopped.
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
        """Train a candidate in round `number`, unless its result is known, and add the result."""
        results = self.results.setdefault(candidate.name, [])
        if number >= len(results):
            results.append(self._train_round(candidate, self.tokens_per_round[number]))
            write_json(self.folder.path / "rounds.json", self.results)
        candidate.rounds.append(results[number])
        self.tokens += self.tokens_per_round[number]
        self.seconds += results[number].get("seconds", 0.0)

    def _train_round(self, candidate: Candidate, tokens: int) -> dict[str, Any]:
        """Train one trial from the beginning, or from its checkpoint, and remove its folder."""
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
    """Search the settings of a method.

    Args:
        search: the lists of settings and the tokens of the search.
        method: the method with its other settings.
        budget: the recipe's budget.
        folder: where trials write. It is removed at the end; a search that was stopped resumes
            from it.
        train: trains a method under a budget in a run's folder and returns the validation loss.
            It resumes from a checkpoint in that folder.

    Returns:
        The contents of `search.json`: all candidates with their losses, the winner, the cost, and
        the settings whose winner is at an edge of what was tried.

    Raises:
        UserError: the results of a stopped search are damaged.
    """
    tried = candidates(search, method)
    plan = rounds(len(tried), search.tokens)
    tokens_per_round = [tokens for _, tokens in plan]
    results = _stopped_results(folder)
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


def _stopped_results(folder: RunDir) -> dict[str, list[dict[str, Any]]]:
    """The rounds that a stopped search has finished, by candidate."""
    path = folder.path / "rounds.json"
    stored = read_json(path, {})
    with reporting_corruption(path):
        # Reading `tokens` here names the file if an entry is damaged.
        return {
            name: [{"tokens": result["tokens"], **result} for result in results]
            for name, results in stored.items()
        }


def _halve(
    trials: Trials, everyone: list[Candidate], sizes: list[int]
) -> tuple[Candidate, list[float]]:
    """Run all rounds.

    Args:
        trials: trains the candidates.
        everyone: the candidates of the first round.
        sizes: candidates of each round.

    Returns:
        The winner; and of each round the cutoff, the worst loss that stayed.
    """
    remaining, cutoffs = list(everyone), []
    for number, size in enumerate(sizes):
        # Every remaining candidate trains from the beginning, with more tokens than before.
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
    """Try learning rates beyond the edge, and return the winner of all.

    Args:
        trials: trains the candidates.
        tried: all candidates so far; new ones are added.
        winner: the winner so far.
        cutoffs: of each round the worst loss that stayed.
    """
    for _ in range(WIDENINGS):
        rate = _rate_beyond_edge(tried, winner)
        if rate is None:
            break
        candidate = Candidate({**winner.settings, "learning_rate": rate}, extended=True)
        tried.append(candidate)
        # The same rounds as the grid; out as soon as it would not have stayed.
        for number, cutoff in enumerate(cutoffs):
            trials.run_round(candidate, number)
            if candidate.loss() > cutoff:
                break
        finished = len(candidate.rounds) == len(cutoffs)
        if finished and candidate.loss() < winner.loss():
            winner = candidate
    return winner


def _rate_beyond_edge(tried: list[Candidate], winner: Candidate) -> float | None:
    """The next learning rate beyond the winner's edge, to two digits; None if it is at no edge."""
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
