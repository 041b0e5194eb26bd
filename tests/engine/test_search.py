"""The search: equal cost, the right winner, flags at the edges."""

from __future__ import annotations

import math

from engine.toy import Toy, train

from tarazu.engine.search import candidates, halve, plan
from tarazu.recipe import Budget, Method, Search
from tarazu.run_folder import Run


def test_rounds_cost_no_more_than_was_given():
    for count in range(1, 12):
        rounds = plan(count, 9000)
        assert rounds[0][0] == count and rounds[-1][0] <= 2
        assert 0.9 * 9000 < sum(n * tokens for n, tokens in rounds) <= 9000


def test_methods_search_only_what_they_have():
    search = Search(tokens=10, learning_rate=[1e-3, 1e-2], rank=[4, 8])
    assert [c.settings for c in candidates(search, Method(kind="x"))] == [{"learning_rate": 1e-3}, {"learning_rate": 1e-2}]


def test_the_better_half_goes_on_and_a_diverged_one_loses(tmp_path):
    calls = []

    def fake(method, budget, trial):
        calls.append((method.learning_rate, budget.tokens))
        return None if method.learning_rate > 0.5 else abs(math.log10(method.learning_rate) + 2)

    search = Search(tokens=1200, learning_rate=[1e-4, 2e-3, 1e-2, 1e-1, 1])
    found = halve(search, Method(kind="x"), Budget(tokens=9), Run(tmp_path / "search" / "seed-0"), fake)
    assert found["winner"] == {"learning_rate": 1e-2} and found["edges"] == []
    assert len(calls) == 5 + 3 + 2 and calls[-1][1] > calls[0][1]
    assert [len(c["rounds"]) for c in found["candidates"]] == [1, 3, 3, 2, 1]


def test_a_real_search_continues_its_candidates_and_flags_the_edge(tmp_path):
    taken = []

    def real(method, budget, trial):
        _, events, _ = train(trial.path, Toy(), Toy().build(rate=method.learning_rate), tokens=budget.tokens, epochs=None, schedule="constant")
        steps = [e["step"] for e in events if e["event"] == "step"]
        assert steps == list(range(1, len(steps) + 1)), "a candidate began anew"
        taken.append(len(steps))
        return [e["loss"] for e in events if e["event"] == "validation"][-1]

    search = Search(tokens=6000, learning_rate=[1e-6, 1e-4, 3e-2])
    found = halve(search, Method(kind="x"), Budget(tokens=9), Run(tmp_path / "search" / "seed-0"), real)
    assert found["winner"] == {"learning_rate": 3e-2} and found["edges"] == ["learning_rate"]
    assert taken[-1] > taken[0] and not (tmp_path / "search" / "seed-0").exists()


def test_a_stopped_search_does_not_repeat_what_it_knows(tmp_path):
    search, place = Search(tokens=1200, learning_rate=[1e-4, 1e-3, 1e-2]), Run(tmp_path / "search" / "seed-0")
    calls = []

    def stops(method, budget, trial):
        calls.append(method.learning_rate)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return method.learning_rate

    try:
        halve(search, Method(kind="x"), Budget(tokens=9), place, stops)
    except KeyboardInterrupt:
        found = halve(search, Method(kind="x"), Budget(tokens=9), place, stops)
    assert calls == [1e-4, 1e-3, 1e-2, 1e-2, 1e-4, 1e-3] and found["winner"] == {"learning_rate": 1e-4}
