"""Which method is best for these conditions: a rule that is stated, a Pareto front, and honesty where methods tie."""

from __future__ import annotations

from dataclasses import dataclass, field

from tarazu.report.analysis.comparison import Comparison
from tarazu.report.analysis.metrics import (
    PARETO_COSTS,
    Metric,
    mean_over_seeds,
    seed_values,
    primary,
)
from tarazu.report.analysis.study_view import StudyView

LAST = "weights_bytes"  # what decides where the seeds cannot tell the other cost apart: it does not depend on the machine
KEEP = 0.9  # "nearly as good": at least this share of the best method's gain
PREFERENCES = {
    "quality": None,
    "memory": "train_memory",
    "speed": "train_seconds",
    "size": "weights_bytes",
}


@dataclass(frozen=True)
class Candidate:
    """A method with its quality, its gain over the baseline (positive is better) and its costs; None: not measured.

    `spans` are the least and the most of each cost over the seeds.
    """

    name: str
    kind: str
    quality: float
    gain: float | None
    costs: dict[str, float | None]
    spans: dict[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Choice:
    """What one preference picks, and among whom. `ties` are the others that the tests cannot tell from the best.

    `runner_up` is the method whose cost `by` is a little lower, but not beyond what the seeds differ by: then the weights' size decided.
    """

    preference: str
    name: str | None
    allowed: list[str]
    ties: list[str]
    by: str | None  # the cost that decided, or None when quality alone did
    runner_up: str | None = None


@dataclass(frozen=True)
class Verdict:
    """The verdict of a study under each preference."""

    metric: Metric
    baseline: float | None
    candidates: list[Candidate]
    best: Candidate | None
    choices: dict[str, Choice]
    fronts: dict[str, list[str]]
    not_better: list[str]

    def candidate(self, name: str | None) -> Candidate | None:
        return next((c for c in self.candidates if c.name == name), None)


def recommend(study: StudyView, comparison: Comparison) -> Verdict:
    """The verdict from the numbers alone."""
    metric = primary(study.task)
    baseline = _baseline(study, metric)
    candidates = []
    for method in study.methods:
        quality = mean_over_seeds(method, metric)
        if quality is not None:
            gain = None if baseline is None else metric.gain(quality, baseline)
            costs = {cost.key: mean_over_seeds(method, cost) for cost in PARETO_COSTS}
            spans = {
                c.key: (min(found), max(found))
                for c in PARETO_COSTS
                if costs[c.key] is not None and (found := seed_values(method, c))
            }
            candidates.append(Candidate(method.name, method.kind, quality, gain, costs, spans))
    candidates.sort(key=lambda c: -metric.gain(c.quality, 0.0))
    best = candidates[0] if candidates else None
    worse = [c.name for c in candidates if not _better_than_base(c, study, comparison, metric)]
    choices = {
        name: _choose(name, cost, candidates, metric, comparison, worse)
        for name, cost in PREFERENCES.items()
    }
    fronts = {cost.key: pareto(candidates, metric, cost.key) for cost in PARETO_COSTS}
    return Verdict(metric, baseline, candidates, best, choices, fronts, worse)


def pareto(candidates: list[Candidate], metric: Metric, cost: str) -> list[str]:
    """The methods that no other beats on quality and on `cost` at once, cheapest first."""
    known = [c for c in candidates if c.costs.get(cost) is not None]
    known.sort(key=lambda c: (c.costs[cost], -metric.gain(c.quality, 0.0)))
    front: list[Candidate] = []
    for one in known:
        if not front or metric.gain(one.quality, front[-1].quality) > 0:
            front.append(one)
    return [c.name for c in front]


def _baseline(study: StudyView, metric: Metric) -> float | None:
    """The untouched model's figure; for captions the constant caption's, the weakest yardstick that still speaks."""
    if study.base:
        return mean_over_seeds(study.base, metric)
    from tarazu.report.analysis.baselines import constant_score

    return constant_score(study, metric.key)


def _choose(
    preference: str,
    cost: str | None,
    candidates: list[Candidate],
    metric: Metric,
    comparison: Comparison,
    unsure: list[str],
) -> Choice:
    """The choice under one preference. A cheaper method that ties with the best is not chosen where only the best one's gain
    over the untouched model is sure (`unsure` names the others)."""
    if not candidates:
        return Choice(preference, None, [], [], None)
    best = candidates[0]
    ties = [
        c.name for c in candidates[1:] if comparison.is_significant(metric.key, best.name, c.name) is False
    ]
    if cost is None:
        equal = [
            c
            for c in candidates
            if c.name in ties and (best.name in unsure or c.name not in unsure)
        ]
        return (
            _cheapest(preference, "train_seconds", [best, *equal], ties)
            if ties
            else Choice(preference, best.name, [best.name], [], None)
        )
    known = [c for c in candidates if c.costs.get(cost) is not None] or candidates
    top = known[0]
    if top.gain is not None and top.gain > 0:
        allowed = [c for c in known if c.gain is not None and c.gain >= KEEP * top.gain]
    else:
        allowed = [top, *[c for c in known if c.name in ties]]
    return _cheapest(preference, cost, allowed, ties)


def _cheapest(preference: str, cost: str, allowed: list[Candidate], ties: list[str]) -> Choice:
    known = [c for c in allowed if c.costs.get(cost) is not None]
    names = [c.name for c in allowed]
    if not known:
        return Choice(preference, allowed[0].name, names, ties, None)
    least = min(known, key=lambda c: c.costs[cost])
    picked = min(
        (c for c in known if _overlap(c, least, cost)),
        key=lambda c: (c.costs[LAST], c.costs[cost]),
        default=least,
    )
    return Choice(
        preference, picked.name, names, ties, cost, None if picked is least else least.name
    )


def _overlap(one: Candidate, least: Candidate, cost: str) -> bool:
    """Whether the seeds leave open which of two methods costs less; both tell the size of their weights."""
    if one.costs.get(LAST) is None or least.costs.get(LAST) is None:
        return False
    return one is least or (
        cost in one.spans and cost in least.spans and one.spans[cost][0] < least.spans[cost][1]
    )


def _better_than_base(
    one: Candidate, study: StudyView, comparison: Comparison, metric: Metric
) -> bool:
    if one.gain is None or one.gain <= 0:
        return one.gain is None
    return not study.base or comparison.is_significant(metric.key, study.base.name, one.name) is not False
