"""The search: equal cost, the right winner, flags at the edges."""

from __future__ import annotations

import math

import pytest
from engine.toy_task import Toy, train

from tarazu.engine.lr_schedule import lr_factor
from tarazu.engine.successive_halving import candidates, max_extended_tokens, run_search
from tarazu.engine.successive_halving import rounds as plan
from tarazu.errors import UserError
from tarazu.recipe.schema import Budget, Method, Search
from tarazu.storage.run_folder import RunDir


def test_rounds_cost_no_more_than_was_given():
    for count in range(1, 12):
        rounds = plan(count, 9000)
        assert rounds[0][0] == count and rounds[-1][0] <= 2
        assert 0.9 * 9000 < sum(n * tokens for n, tokens in rounds) <= 9000


def test_methods_search_only_what_they_have():
    search = Search(tokens=10, learning_rate=[1e-3, 1e-2], rank=[4, 8])
    assert [c.settings for c in candidates(search, Method(kind="x"))] == [
        {"learning_rate": 1e-3},
        {"learning_rate": 1e-2},
    ]


def test_the_better_half_goes_on_and_a_diverged_one_loses(tmp_path):
    calls = []

    def fake(method, budget, trial):
        calls.append((method.learning_rate, budget.tokens))
        return None if method.learning_rate > 0.5 else abs(math.log10(method.learning_rate) + 2)

    search = Search(
        tokens=1200, learning_rate=[1e-4, 2e-3, 1e-2, 1e-1, 1]
    )  # the winner is inside: nothing lies beyond
    found = run_search(
        search, Method(kind="x"), Budget(tokens=9), RunDir(tmp_path / "search" / "seed-0"), fake
    )
    assert found["winner"] == {"learning_rate": 1e-2} and found["edges"] == []
    assert len(calls) == 5 + 3 + 2 and calls[-1][1] > calls[0][1]
    assert [len(c["rounds"]) for c in found["candidates"]] == [1, 3, 3, 2, 1]


def bowl(best: float):
    """A trainer whose loss is least at `best`, and the calls that it got."""
    calls = []

    def train(method, budget, trial):
        calls.append((method.learning_rate, budget.tokens))
        return abs(math.log10(method.learning_rate / best))

    return train, calls


def searched(tmp_path, train, tokens=1200, **grid):
    return run_search(
        Search(tokens=tokens, **grid),
        Method(kind="x"),
        Budget(tokens=9),
        RunDir(tmp_path / "search" / "seed-0"),
        train,
    )


def rates(found) -> list[float]:
    return [candidate["settings"]["learning_rate"] for candidate in found["candidates"]]


def test_a_best_rate_at_the_upper_edge_is_looked_for_beyond_it(tmp_path):
    train, calls = bowl(best=3e-2)
    found = searched(tmp_path, train, learning_rate=[1e-4, 1e-3, 1e-2])
    assert rates(found) == [1e-4, 1e-3, 1e-2, 3e-2, 9e-2]
    assert (
        found["winner"] == {"learning_rate": 3e-2} and found["edges"] == []
    )  # 9e-2 was tried and was worse
    assert [c.get("extended", False) for c in found["candidates"]] == [False] * 3 + [True] * 2
    winner, lost = found["candidates"][3:]
    assert [r["tokens"] for r in winner["rounds"]] == [
        r["tokens"] for r in found["candidates"][2]["rounds"]
    ]
    assert found["tokens"] == sum(r["tokens"] for c in found["candidates"] for r in c["rounds"])
    assert (
        found["tokens_extended"]
        == sum(r["tokens"] for c in (winner, lost) for r in c["rounds"])
        <= max_extended_tokens(3, 1200)
    )


def test_a_best_rate_at_the_lower_edge_is_looked_for_below_it(tmp_path):
    train, _ = bowl(best=4e-5)
    found = searched(tmp_path, train, learning_rate=[1e-4, 1e-3, 1e-2])
    assert rates(found) == [1e-4, 1e-3, 1e-2, 3.3e-5, 1.1e-5] and found["winner"] == {
        "learning_rate": 3.3e-5
    }


def test_a_rate_that_would_not_have_gone_on_is_left_early(tmp_path):
    train, calls = bowl(best=8e-3)
    found = searched(tmp_path, train, learning_rate=[1e-5, 1e-4, 1e-3, 5e-3, 1e-2])
    assert (
        len(found["candidates"]) == 6
        and found["winner"] == {"learning_rate": 1e-2}
        and found["edges"] == []
    )
    train, _ = bowl(best=1e-2)
    assert (
        len(searched(tmp_path, train, learning_rate=[1e-3, 9e-3, 1e-2])["candidates"][-1]["rounds"])
        == 1
    )
    assert found["tokens_extended"] < max_extended_tokens(5, 1200) / 2


def test_after_two_rates_beyond_the_edge_is_flagged(tmp_path):
    train, _ = bowl(best=100)
    found = searched(tmp_path, train, learning_rate=[1e-4, 1e-3])
    assert (
        rates(found)[2:] == [3e-3, 9e-3]
        and found["winner"] == {"learning_rate": 9e-3}
        and found["edges"] == ["learning_rate"]
    )
    assert found["tokens_extended"] == max_extended_tokens(2, 1200) == 2 * 600


def test_widening_can_be_switched_off_and_other_settings_are_only_flagged(tmp_path):
    train, calls = bowl(best=100)
    found = searched(tmp_path, train, learning_rate=[1e-4, 1e-3], extend_range=False)
    assert (
        found["edges"] == ["learning_rate"]
        and len(found["candidates"]) == 2
        and found["tokens_extended"] == 0
    )

    def ranked(method, budget, trial):
        return 1 / method.rank + abs(math.log10(method.learning_rate / 1e-3))

    class Ranked(Method):
        rank: int = 1

    search = Search(tokens=9000, learning_rate=[1e-4, 1e-3, 1e-2], rank=[2, 4])
    found = run_search(
        search, Ranked(kind="x"), Budget(tokens=9), RunDir(tmp_path / "search" / "seed-0"), ranked
    )
    assert found["edges"] == ["rank"] and len(found["candidates"]) == 6


def test_a_search_in_which_all_diverge_does_not_go_further(tmp_path):
    found = searched(tmp_path, lambda *_: None, learning_rate=[1e-2, 1])
    assert found["loss"] is None and found["tokens_extended"] == 0


def test_a_search_that_stopped_beyond_the_edge_goes_on_there(tmp_path):
    whole, _ = bowl(best=100)
    expected = searched(tmp_path / "whole", whole, learning_rate=[1e-4, 1e-3])
    train, calls = bowl(best=100)

    def stops(method, budget, trial):
        if method.learning_rate == 9e-3 and ("stopped", 0) not in calls:
            calls.append(("stopped", 0))
            raise KeyboardInterrupt
        return train(method, budget, trial)

    with pytest.raises(KeyboardInterrupt):
        searched(tmp_path, stops, learning_rate=[1e-4, 1e-3])
    found = searched(tmp_path, stops, learning_rate=[1e-4, 1e-3])
    assert [call[0] for call in calls] == [1e-4, 1e-3, 3e-3, "stopped", 9e-3]
    timeless = [
        {
            **f,
            "seconds": 0,
            "candidates": [
                [(r["tokens"], r["loss"]) for r in c["rounds"]] for c in f["candidates"]
            ],
        }
        for f in (found, expected)
    ]
    assert timeless[0] == timeless[1]


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"learning_rate=0.0001": 3}', '{"learning_rate=0.0001": [{"loss": 1}]}']
)
def test_a_damaged_record_of_a_stopped_search_is_named(tmp_path, content):
    (tmp_path / "search" / "seed-0").mkdir(parents=True)
    (tmp_path / "search" / "seed-0" / "rounds.json").write_text(content)
    with pytest.raises(UserError, match="rounds.json"):
        searched(tmp_path, bowl(1)[0], learning_rate=[1e-4, 1e-3])


def test_every_trial_is_a_whole_run_in_small_with_the_recipes_own_schedule(tmp_path):
    taken, ends = [], []

    def real(method, budget, trial):
        assert (budget.schedule, budget.warmup_ratio) == ("cosine", 0.2) and not (
            trial.path / "checkpoint"
        ).exists(), "not from the start"
        _, events, _ = train(
            trial.path,
            Toy(),
            Toy().build(rate=method.learning_rate),
            tokens=budget.tokens,
            epochs=None,
            schedule=budget.schedule,
            warmup=budget.warmup_ratio,
        )
        steps = [e for e in events if e["event"] == "step"]
        assert [e["step"] for e in steps] == list(range(1, len(steps) + 1))
        taken.append(len(steps))
        ends.append(steps[-1]["learning_rate"] / method.learning_rate)
        return [e["loss"] for e in events if e["event"] == "validation"][-1]

    search, budget = (
        Search(tokens=6000, learning_rate=[1e-6, 1e-4, 3e-2], extend_range=False),
        Budget(tokens=9, warmup=0.2),
    )
    found = run_search(search, Method(kind="x"), budget, RunDir(tmp_path / "search" / "seed-0"), real)
    assert found["winner"] == {"learning_rate": 3e-2} and found["edges"] == ["learning_rate"]
    assert taken[-1] > taken[0] and max(ends) < 0.05, "the loss was not measured after the decay"
    assert not (tmp_path / "search" / "seed-0").exists()


def noisy(rate: float, schedule: str) -> float:
    """The mean loss of a noisy quadratic, theta -> (1 - rate) theta + rate noise, after 60 steps: exact, no chance in it."""
    mean, spread = 10.0, 0.0
    for step in range(60):
        now = rate * lr_factor(step / 60, schedule, 0.05)
        mean, spread = (1 - now) * mean, (1 - now) ** 2 * spread + now**2
    return mean**2 + spread


def test_a_constant_rate_would_choose_a_smaller_one_than_the_real_run_wants(tmp_path):
    rates = [0.01, 0.03, 0.1, 0.3, 0.9]
    best = {
        schedule: min(rates, key=lambda rate: noisy(rate, schedule))
        for schedule in ("constant", "cosine")
    }
    assert best["constant"] < best["cosine"], "this test would show nothing"
    search = Search(tokens=1200, learning_rate=rates)
    found = run_search(
        search,
        Method(kind="x"),
        Budget(tokens=9),
        RunDir(tmp_path / "search" / "seed-0"),
        lambda m, b, _: noisy(m.learning_rate, b.schedule),
    )
    assert found["winner"] == {"learning_rate": best["cosine"]}


def test_a_stopped_search_does_not_repeat_what_it_knows(tmp_path):
    search, place = (
        Search(tokens=1200, learning_rate=[1e-4, 1e-3, 1e-2], extend_range=False),
        RunDir(tmp_path / "search" / "seed-0"),
    )
    calls = []

    def stops(method, budget, trial):
        calls.append(method.learning_rate)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return method.learning_rate

    try:
        run_search(search, Method(kind="x"), Budget(tokens=9), place, stops)
    except KeyboardInterrupt:
        found = run_search(search, Method(kind="x"), Budget(tokens=9), place, stops)
    assert calls == [1e-4, 1e-3, 1e-2, 1e-2, 1e-4, 1e-3] and found["winner"] == {
        "learning_rate": 1e-4
    }
