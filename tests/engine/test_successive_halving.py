"""Successive halving: equal cost, learning rates beyond an edge, resume after a stop."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from engine.toy_task import Toy, train

from tarazu.engine.lr_schedule import lr_factor
from tarazu.engine.successive_halving import (
    candidates,
    max_extended_tokens,
    plan_rounds,
    run_search,
)
from tarazu.errors import UserError
from tarazu.recipe.schema import Budget, Method, Search
from tarazu.storage.run_folder import RunDir


class Ranked(Method):
    rank: int = 1


def search(tmp_path: Path, train_trial, method: Method | None = None, **settings: Any) -> dict:
    """The result of a search with these lists; `train_trial` stands in for the training."""
    return run_search(
        Search(**{"tokens": 1200, **settings}),
        method or Method(kind="x"),
        Budget(tokens=9, warmup_ratio=0.2),
        RunDir(tmp_path / "search" / "seed-0"),
        train_trial,
    )


def loss_around(best: float):
    """A trainer whose loss is lowest at the learning rate `best`, and its calls."""
    calls = []

    def train_trial(method, budget, trial):
        calls.append((method.learning_rate, budget.tokens))
        return abs(math.log10(method.learning_rate / best))

    return train_trial, calls


def rates(result: dict) -> list[float]:
    return [candidate["settings"]["learning_rate"] for candidate in result["candidates"]]


def round_counts(result: dict) -> list[int]:
    return [len(candidate["rounds"]) for candidate in result["candidates"]]


def test_rounds_cost_no_more_than_the_search_has():
    for count in range(1, 12):
        plan = plan_rounds(count, 9000)
        assert plan[0][0] == count and plan[-1][0] <= 2
        assert 0.9 * 9000 < sum(size * tokens for size, tokens in plan) <= 9000


def test_methods_search_only_their_own_settings():
    lists = Search(tokens=10, learning_rate=[1e-3, 1e-2], rank=[4, 8])
    found = [candidate.settings for candidate in candidates(lists, Method(kind="x"))]
    assert found == [{"learning_rate": 1e-3}, {"learning_rate": 1e-2}]


def test_better_half_stays_and_a_diverged_candidate_loses(tmp_path):
    lower_losses, calls = loss_around(1e-2)

    def train_trial(method, budget, trial):
        loss = lower_losses(method, budget, trial)
        return None if method.learning_rate > 0.5 else loss

    # The winner is no edge, so nothing is tried beyond the list.
    result = search(tmp_path, train_trial, learning_rate=[1e-4, 2e-3, 1e-2, 1e-1, 1])
    assert result["winner"] == {"learning_rate": 1e-2} and result["edges"] == []
    assert len(calls) == 5 + 3 + 2 and calls[-1][1] > calls[0][1]
    assert round_counts(result) == [1, 3, 3, 2, 1]


def test_rates_beyond_the_upper_edge_are_tried(tmp_path):
    train_trial, _ = loss_around(3e-2)
    result = search(tmp_path, train_trial, learning_rate=[1e-4, 1e-3, 1e-2])
    assert rates(result) == [1e-4, 1e-3, 1e-2, 3e-2, 9e-2]
    # 9e-2 was worse, so that the winner is at no edge.
    assert result["winner"] == {"learning_rate": 3e-2} and result["edges"] == []
    extended = [candidate.get("extended", False) for candidate in result["candidates"]]
    assert extended == [False, False, False, True, True]


def test_extended_rate_has_the_rounds_of_the_grid(tmp_path):
    train_trial, _ = loss_around(3e-2)
    result = search(tmp_path, train_trial, learning_rate=[1e-4, 1e-3, 1e-2])
    tokens = [[r["tokens"] for r in candidate["rounds"]] for candidate in result["candidates"]]
    assert tokens[3] == tokens[2]
    assert result["tokens"] == sum(map(sum, tokens))
    assert result["tokens_extended"] == sum(map(sum, tokens[3:])) <= max_extended_tokens(3, 1200)


def test_rates_below_the_lower_edge_are_tried(tmp_path):
    train_trial, _ = loss_around(4e-5)
    result = search(tmp_path, train_trial, learning_rate=[1e-4, 1e-3, 1e-2])
    assert rates(result) == [1e-4, 1e-3, 1e-2, 3.3e-5, 1.1e-5]
    assert result["winner"] == {"learning_rate": 3.3e-5}


def test_extended_rate_stops_at_the_first_round_that_it_loses(tmp_path):
    train_trial, _ = loss_around(8e-3)
    result = search(tmp_path, train_trial, learning_rate=[1e-5, 1e-4, 1e-3, 5e-3, 1e-2])
    assert len(result["candidates"]) == 6
    assert result["winner"] == {"learning_rate": 1e-2} and result["edges"] == []
    assert result["tokens_extended"] < max_extended_tokens(5, 1200) / 2
    train_trial, _ = loss_around(1e-2)
    result = search(tmp_path, train_trial, learning_rate=[1e-3, 9e-3, 1e-2])
    assert round_counts(result)[-1] == 1


def test_after_two_extended_rates_the_edge_is_reported(tmp_path):
    train_trial, _ = loss_around(100)
    result = search(tmp_path, train_trial, learning_rate=[1e-4, 1e-3])
    assert rates(result)[2:] == [3e-3, 9e-3]
    assert result["winner"] == {"learning_rate": 9e-3} and result["edges"] == ["learning_rate"]
    assert result["tokens_extended"] == max_extended_tokens(2, 1200) == 2 * 600


def test_range_is_not_extended_where_the_recipe_forbids_it(tmp_path):
    train_trial, _ = loss_around(100)
    result = search(tmp_path, train_trial, learning_rate=[1e-4, 1e-3], extend_range=False)
    assert result["edges"] == ["learning_rate"]
    assert len(result["candidates"]) == 2 and result["tokens_extended"] == 0


def test_other_settings_at_an_edge_are_only_reported(tmp_path):
    def train_trial(method, budget, trial):
        return 1 / method.rank + abs(math.log10(method.learning_rate / 1e-3))

    lists = {"tokens": 9000, "learning_rate": [1e-4, 1e-3, 1e-2], "rank": [2, 4]}
    result = search(tmp_path, train_trial, Ranked(kind="x"), **lists)
    assert result["edges"] == ["rank"] and len(result["candidates"]) == 6


def test_search_in_which_all_diverge_is_not_extended(tmp_path):
    result = search(tmp_path, lambda *_: None, learning_rate=[1e-2, 1])
    assert result["loss"] is None and result["tokens_extended"] == 0


def test_stopped_search_does_not_repeat_finished_trials(tmp_path):
    calls = []

    def train_trial(method, budget, trial):
        calls.append(method.learning_rate)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return method.learning_rate

    lists = {"learning_rate": [1e-4, 1e-3, 1e-2], "extend_range": False}
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path, train_trial, **lists)
    result = search(tmp_path, train_trial, **lists)
    assert calls == [1e-4, 1e-3, 1e-2, 1e-2, 1e-4, 1e-3]
    assert result["winner"] == {"learning_rate": 1e-4}


def test_search_that_stopped_beyond_the_edge_resumes_there(tmp_path):
    uninterrupted, _ = loss_around(100)
    expected = search(tmp_path / "expected", uninterrupted, learning_rate=[1e-4, 1e-3])
    train_trial, calls = loss_around(100)

    def stopping(method, budget, trial):
        if method.learning_rate == 9e-3 and ("stopped", 0) not in calls:
            calls.append(("stopped", 0))
            raise KeyboardInterrupt
        return train_trial(method, budget, trial)

    with pytest.raises(KeyboardInterrupt):
        search(tmp_path, stopping, learning_rate=[1e-4, 1e-3])
    result = search(tmp_path, stopping, learning_rate=[1e-4, 1e-3])
    assert [call[0] for call in calls] == [1e-4, 1e-3, 3e-3, "stopped", 9e-3]

    def untimed(result: dict) -> dict:
        losses = [
            [(r["tokens"], r["loss"]) for r in candidate["rounds"]]
            for candidate in result["candidates"]
        ]
        return {**result, "seconds": 0, "candidates": losses}

    assert untimed(result) == untimed(expected)


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"learning_rate=0.0001": 3}', '{"learning_rate=0.0001": [{"loss": 1}]}']
)
def test_damaged_results_of_a_stopped_search_are_an_error(tmp_path, content):
    (tmp_path / "search" / "seed-0").mkdir(parents=True)
    (tmp_path / "search" / "seed-0" / "rounds.json").write_text(content)
    with pytest.raises(UserError, match=r"rounds\.json"):
        search(tmp_path, loss_around(1)[0], learning_rate=[1e-4, 1e-3])


def test_every_trial_starts_anew_with_the_recipes_own_schedule(tmp_path):
    steps_per_trial, last_factors = [], []

    def train_trial(method, budget, trial):
        assert (budget.schedule, budget.warmup_ratio) == ("cosine", 0.2)
        assert not (trial.path / "checkpoint").exists(), "the trial starts from the beginning"
        _, events, _ = train(
            trial.path,
            model=Toy().build(rate=method.learning_rate),
            tokens=budget.tokens,
            epochs=None,
            schedule=budget.schedule,
            warmup_ratio=budget.warmup_ratio,
        )
        steps = [event for event in events if event["event"] == "step"]
        assert [event["step"] for event in steps] == list(range(1, len(steps) + 1))
        steps_per_trial.append(len(steps))
        last_factors.append(steps[-1]["learning_rate"] / method.learning_rate)
        return [event["loss"] for event in events if event["event"] == "validation"][-1]

    lists = {"tokens": 6000, "learning_rate": [1e-6, 1e-4, 3e-2], "extend_range": False}
    result = search(tmp_path, train_trial, **lists)
    assert result["winner"] == {"learning_rate": 3e-2} and result["edges"] == ["learning_rate"]
    assert steps_per_trial[-1] > steps_per_trial[0]
    assert max(last_factors) < 0.05, "the loss was not measured after the decay"
    assert not (tmp_path / "search" / "seed-0").exists()


def quadratic_loss(rate: float, schedule: str) -> float:
    """Exact mean loss after 60 steps of x <- (1 - rate) x + rate * noise, from x = 10."""
    mean, variance = 10.0, 0.0
    for step in range(60):
        now = rate * lr_factor(step / 60, schedule, 0.05)
        mean, variance = (1 - now) * mean, (1 - now) ** 2 * variance + now**2
    return mean**2 + variance


def test_search_finds_the_rate_of_the_real_schedule(tmp_path):
    """A constant schedule would choose a lower rate than the real run needs."""
    learning_rates = [0.01, 0.03, 0.1, 0.3, 0.9]
    best = {
        schedule: min(learning_rates, key=lambda rate: quadratic_loss(rate, schedule))
        for schedule in ("constant", "cosine")
    }
    assert best["constant"] < best["cosine"], "the schedules must differ for this test"
    result = search(
        tmp_path,
        lambda method, budget, _: quadratic_loss(method.learning_rate, budget.schedule),
        learning_rate=learning_rates,
    )
    assert result["winner"] == {"learning_rate": best["cosine"]}
