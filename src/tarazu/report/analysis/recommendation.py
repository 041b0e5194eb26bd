"""Which method to choose under each preference, Pareto fronts, and ties with the best method."""

from __future__ import annotations

from dataclasses import dataclass, field

from tarazu.report.analysis.comparison import Comparison
from tarazu.report.analysis.metrics import Metric, TaskMetrics, mean_over_seeds, seed_values
from tarazu.report.analysis.study_view import StudyView

# Decides where the seeds leave open which method costs less: it does not depend on the machine.
TIE_BREAKER = "weights_bytes"
# A method is nearly as good as the best one if it keeps this fraction of the best one's gain.
KEEP = 0.9
# Each preference, and the cost that decides among methods that are nearly as good.
PREFERENCES = {
    "quality": None,
    "memory": "train_memory",
    "speed": "train_seconds",
    "size": "weights_bytes",
}


@dataclass(frozen=True)
class Candidate:
    """A method that can be recommended.

    Args:
        quality: the primary metric, mean over seeds.
        gain: how much better that is than the baseline (positive is better); None without a
            baseline.
        costs: each cost by its key, mean over seeds; None where it was not measured.
        cost_ranges: the smallest and largest value of each cost over the seeds.
    """

    name: str
    kind: str
    quality: float
    gain: float | None
    costs: dict[str, float | None]
    cost_ranges: dict[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Choice:
    """What one preference picks.

    Args:
        name: the chosen method; None where no method has a quality.
        allowed: the methods among which the cost decided.
        ties: methods that the tests cannot tell from the best one.
        by: the cost that decided, or None where quality alone did.
        runner_up: the method with a slightly lower cost, where the seeds leave open which of the
            two costs less, so that the size of the weights decided.
    """

    preference: str
    name: str | None
    allowed: list[str]
    ties: list[str]
    by: str | None
    runner_up: str | None = None


@dataclass(frozen=True)
class Verdict:
    """The recommendation of a study under each preference.

    Args:
        metric: the primary metric.
        baseline: that metric without training; None where there is no baseline.
        candidates: the methods that have the metric, best first.
        choices: what each preference picks.
        fronts: the names on the Pareto front of each cost, cheapest first.
        not_better: methods that are not shown to be better than the base model.
    """

    metric: Metric
    baseline: float | None
    candidates: list[Candidate]
    choices: dict[str, Choice]
    fronts: dict[str, list[str]]
    not_better: list[str]

    @property
    def best(self) -> Candidate | None:
        """The candidate with the best quality."""
        return self.candidates[0] if self.candidates else None

    def candidate(self, name: str | None) -> Candidate | None:
        """The candidate of that name, or None."""
        return next((c for c in self.candidates if c.name == name), None)


def recommend(study: StudyView, comparison: Comparison) -> Verdict:
    """Recommend a method for each preference, from the numbers alone."""
    metrics = comparison.metrics
    metric, costs = metrics.primary, metrics.pareto_costs
    baseline = mean_over_seeds(study.base, metric) if study.base else metrics.baseline(study)
    candidates = _candidates(study, metrics, baseline)
    not_better = [c.name for c in candidates if not _beats_base(c, study, comparison)]
    choices = {
        preference: choose(preference, cost, candidates, comparison, not_better)
        for preference, cost in PREFERENCES.items()
    }
    fronts = {cost.key: pareto(candidates, metric, cost.key) for cost in costs}
    return Verdict(metric, baseline, candidates, choices, fronts, not_better)


def _candidates(study: StudyView, metrics: TaskMetrics, baseline: float | None) -> list[Candidate]:
    """The methods with a measured quality, best first."""
    metric, candidates = metrics.primary, []
    for method in study.methods:
        quality = mean_over_seeds(method, metric)
        if quality is None:
            continue
        gain = None if baseline is None else metric.gain(quality, baseline)
        costs = {cost.key: mean_over_seeds(method, cost) for cost in metrics.pareto_costs}
        ranges = {
            cost.key: (min(values), max(values))
            for cost in metrics.pareto_costs
            if costs[cost.key] is not None and (values := seed_values(method, cost))
        }
        candidates.append(Candidate(method.name, method.kind, quality, gain, costs, ranges))
    return sorted(candidates, key=lambda c: -metric.gain(c.quality, 0.0))


def pareto(candidates: list[Candidate], metric: Metric, cost: str) -> list[str]:
    """The names of methods that no other beats on quality and on `cost` at once, cheapest first."""
    with_cost = [c for c in candidates if c.costs.get(cost) is not None]
    with_cost.sort(key=lambda c: (c.costs[cost], -metric.gain(c.quality, 0.0)))
    # From cheap to expensive, a method is on the front if it is better than all cheaper ones.
    front: list[Candidate] = []
    for candidate in with_cost:
        if not front or metric.gain(candidate.quality, front[-1].quality) > 0:
            front.append(candidate)
    return [c.name for c in front]


def choose(
    preference: str,
    cost: str | None,
    candidates: list[Candidate],
    comparison: Comparison,
    not_better: list[str],
) -> Choice:
    """Pick a method under one preference.

    Args:
        cost: the cost to minimise among the methods that keep `KEEP` of the best gain; None:
            quality decides, and training time decides among the methods that tie with the best.
        candidates: best first.
        not_better: methods that are not shown to beat the base model. One that ties with the best
            is no alternative to it where the best does beat the base.
    """
    if not candidates:
        return Choice(preference, None, [], [], None)
    best, key = candidates[0], comparison.metrics.primary.key
    ties = [
        c.name for c in candidates[1:] if comparison.is_significant(key, best.name, c.name) is False
    ]
    if cost is None:
        if not ties:
            return Choice(preference, best.name, [best.name], [], None)
        equals = [
            c
            for c in candidates
            if c.name in ties and (best.name in not_better or c.name not in not_better)
        ]
        return _pick_cheapest(preference, "train_seconds", [best, *equals], ties)
    with_cost = [c for c in candidates if c.costs.get(cost) is not None] or candidates
    top = with_cost[0]
    if top.gain is not None and top.gain > 0:
        allowed = [c for c in with_cost if c.gain is not None and c.gain >= KEEP * top.gain]
    else:  # nothing was gained: only the methods that tie with the best are as good
        allowed = [top, *[c for c in with_cost if c.name in ties]]
    return _pick_cheapest(preference, cost, allowed, ties)


def _pick_cheapest(preference: str, cost: str, allowed: list[Candidate], ties: list[str]) -> Choice:
    """The cheapest method; among those whose seeds overlap with it, the one of smallest weights."""
    with_cost = [c for c in allowed if c.costs.get(cost) is not None]
    names = [c.name for c in allowed]
    if not with_cost:
        return Choice(preference, allowed[0].name, names, ties, None)
    cheapest = min(with_cost, key=lambda c: c.costs[cost])
    picked = min(
        (c for c in with_cost if _may_cost_less(c, cheapest, cost)),
        key=lambda c: (c.costs[TIE_BREAKER], c.costs[cost]),
        default=cheapest,
    )
    runner_up = None if picked is cheapest else cheapest.name
    return Choice(preference, picked.name, names, ties, cost, runner_up)


def _may_cost_less(candidate: Candidate, cheapest: Candidate, cost: str) -> bool:
    """Whether the seeds leave open which costs less. The tie-breaker must be known of both."""
    if candidate.costs.get(TIE_BREAKER) is None or cheapest.costs.get(TIE_BREAKER) is None:
        return False
    if candidate is cheapest:
        return True
    ranges, cheapest_ranges = candidate.cost_ranges, cheapest.cost_ranges
    return cost in ranges and cost in cheapest_ranges and ranges[cost][0] < cheapest_ranges[cost][1]


def _beats_base(candidate: Candidate, study: StudyView, comparison: Comparison) -> bool:
    """Whether a candidate is better than the base; a gain that was not tested counts."""
    if candidate.gain is None:
        return True
    if candidate.gain <= 0:
        return False
    key = comparison.metrics.primary.key
    return (
        not study.base
        or comparison.is_significant(key, study.base.name, candidate.name) is not False
    )
