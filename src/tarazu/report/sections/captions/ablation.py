"""Arms of one kind side by side: what one setting more or less does, beside the first method (captions)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial

from tarazu.report.analysis.comparison import Pair
from tarazu.report.analysis.curves import analyse
from tarazu.report.analysis.metrics import mean_over_seeds
from tarazu.report.analysis.study_view import MethodView, get_path
from tarazu.report.render import charts
from tarazu.report.render.bilingual import (
    Bilingual,
    code,
    joined,
    number,
    small_note,
    spaced,
    translate,
    translate_or,
)
from tarazu.report.render.figures import Figure
from tarazu.report.render.tables import Cell, Table, number_cell, text_cell
from tarazu.report.sections.captions.metrics import METRICS
from tarazu.report.sections.common.base import Context
from tarazu.report.sections.common.method_names import method_name

LEAST = 3  # methods of a kind: two are a comparison, not an ablation
LEAD = "cider"


@dataclass(frozen=True)
class Against:
    """One method minus the first one, on the same images."""

    method: MethodView
    mean: float
    low: float
    high: float
    pair: Pair


def ablation_view(context: Context) -> list[dict]:
    """For each kind that several methods share: the table, a figure of the differences, and what they say."""
    views = []
    for group in groups(context.study.methods):
        found = [
            one
            for method in group[1:]
            if (one := against(context, LEAD, group[0], method)) is not None
        ]
        views.append(
            {
                "kind": group[0].kind,
                "name": translate_or(f"kind.{group[0].kind}", group[0].kind),
                "sentences": sentences(group, found),
                "table": table(context, group),
                "figure": figure(context, group, found),
            }
        )
    return views


def groups(methods: list[MethodView]) -> list[list[MethodView]]:
    """Arms of one kind, the recipe's first one first; an ensemble stands with the methods that it is made of."""
    kinds: dict[str, list[MethodView]] = {}
    for method in methods:
        if method.kind != "ensemble":
            kinds.setdefault(method.kind, []).append(method)
    found = [group for group in kinds.values() if len(group) >= LEAST]
    for group in found:
        names = {method.name for method in group}
        group += [
            method
            for method in methods
            if method.kind == "ensemble" and members(method) and members(method) <= names
        ]
    return found


def members(method: MethodView) -> set[str]:
    """The methods that an ensemble is made of."""
    return {str(one).partition("/")[0] for one in get_path(settings(method), "members", default=[])}


def settings(method: MethodView) -> dict:
    return get_path(method.first.run_info, "settings", default={})


def what_differs(first: MethodView, method: MethodView) -> list[str]:
    """`setting: value` for each setting in which an method is not the first one."""
    if method.kind != first.kind:
        return [f"{method.kind}: {', '.join(sorted(members(method)))}"]
    mine, other = settings(method), settings(first)
    changed = [key for key in {**other, **mine} if mine.get(key) != other.get(key)]
    return [f"{key}: {_written(mine.get(key))}" for key in changed]


def _written(value) -> str:
    """A setting's value as a recipe has it."""
    return (
        value if isinstance(value, str) else json.dumps(value, ensure_ascii=False).replace('"', "")
    )


def against(context: Context, key: str, first: MethodView, method: MethodView) -> Against | None:
    """The paired difference in one figure; None where the two did not describe the same images."""
    pair = context.comparison.pair(key, first.name, method.name)
    if pair is None:
        return None
    sign = 1 if pair.a == method.name else -1
    low, high = sorted((sign * pair.difference.low, sign * pair.difference.high))
    return Against(method, sign * pair.difference.mean, low, high, pair)


def table(context: Context, group: list[MethodView]) -> Table:
    """One row per method: what differs, how it learned, what it scores, and how far it is from the first."""
    first = group[0]
    names = ("differs", "best_epoch", "train_loss", "validation_loss", "gap")
    columns = [translate("compare.method"), *[translate(f"ablation.{name}") for name in names]]
    columns += [
        translate("metric.bleu4"),
        translate("metric.cider"),
        translate("ablation.cider"),
        translate("ablation.bleu4"),
    ]
    rows = [
        [
            text_cell(method_name(method)),
            _differs(first, method),
            *_curve_cells(method),
            *_score_cells(context, first, method),
        ]
        for method in group
    ]
    sources = [
        run
        for method in group
        for run in (method.first.file("events.jsonl"), method.first.file("metrics.json"))
    ]
    return Table(
        translate("ablation.table", first=code(first.name)), columns, rows, sources, sortable=True
    )


def _differs(first: MethodView, method: MethodView) -> Cell:
    if method is first:
        return text_cell(translate("ablation.first"))
    changed = what_differs(first, method)
    return Cell(
        joined([code(one) for one in changed]) if changed else translate("common.none"),
        ", ".join(changed),
    )


def _curve_cells(method: MethodView) -> list[Cell]:
    """Best of all epochs, training loss, validation loss (least, then last), and the gap between the last two."""
    facts, source = analyse(method.first, "epoch"), method.first.file("events.jsonl")
    if facts.best_at is None:
        return [number_cell(None, "loss")] * 4  # it trains nothing of its own
    epochs = translate(
        "ablation.of",
        best=number(facts.best_at, "number", source),
        last=number(facts.end_at, "number", source),
    )
    best, last = (number(v, "loss", source) for v in (facts.validation_best, facts.validation_last))
    return [
        Cell(epochs, facts.best_at),
        number_cell(facts.train_last, "loss", source),
        Cell(translate("ablation.then", best=best, last=last), facts.validation_last),
        number_cell(facts.gap, "signed", source),
    ]


def _score_cells(context: Context, first: MethodView, method: MethodView) -> list[Cell]:
    source, known = method.first.file("metrics.json"), METRICS.by_key
    cells = []
    for key in ("bleu4", LEAD):
        low, high = (
            get_path(method.first.metrics, "decoding", "beam3", "intervals", key, side)
            for side in (0, 1)
        )
        span = small_note(
            translate("compare.interval", low=number(low, "points"), high=number(high, "points"))
        )
        value = mean_over_seeds(method, known[key])
        cells.append(Cell(spaced(number(value, "points", source), span), value))
    return cells + [_difference(context, key, first, method) for key in (LEAD, "bleu4")]


def _difference(context: Context, key: str, first: MethodView, method: MethodView) -> Cell:
    found = None if method is first else against(context, key, first, method)
    if found is None:
        return number_cell(None if method is not first else 0.0, "signed_points")
    low, high = (number(value, "signed_points") for value in (found.low, found.high))
    span = small_note(translate("compare.interval", low=low, high=high))
    says = (
        translate("ablation.significant")
        if found.pair.significant
        else translate("ablation.unsure")
    )
    return Cell(
        spaced(number(found.mean, "signed_points", method.first.file("samples.jsonl")), span, says),
        found.mean,
    )


def figure(context: Context, group: list[MethodView], found: list[Against]) -> Figure | None:
    """Each method's difference from the first in CIDEr, with its interval."""
    if not found:
        return None
    rows = [
        {
            "name": one.method.name,
            "mean": one.mean,
            "low": one.low,
            "high": one.high,
            "significant": one.pair.significant,
        }
        for one in found
    ]
    make = partial(charts.forest_plot, rows, translate("axis.cider_difference"))
    caption = translate("ablation.figure", first=code(group[0].name))
    sources = [method.first.file("samples.jsonl") for method in group]
    return context.figures.add(
        f"ablation-{group[0].kind}", caption, lambda language: make(language=language), sources
    )


def sentences(group: list[MethodView], found: list[Against]) -> list[Bilingual]:
    """Who is surely better or worse than the first method, who cannot be told from it, and who over-fitted."""
    first, told = code(group[0].name), []
    better = [one for one in found if one.pair.significant and one.mean > 0]
    worse = [one for one in found if one.pair.significant and one.mean < 0]
    same = [one for one in found if not one.pair.significant]
    for key, some in (("better", better), ("worse", worse)):
        if some:
            some = sorted(some, key=lambda one: -abs(one.mean))
            told.append(
                translate(
                    f"ablation.{key}",
                    first=first,
                    methods=joined([_by_how_much(one) for one in some]),
                )
            )
    if same:
        reach = number(max(one.pair.difference.min_detectable for one in same), "points")
        told.append(
            translate(
                "ablation.same",
                first=first,
                methods=joined([code(one.method.name) for one in same]),
                reach=reach,
            )
        )
    return told + _overfitted(group)


def _by_how_much(one: Against) -> Bilingual:
    return spaced(
        code(one.method.name),
        translate("common.in_brackets", what=number(one.mean, "signed_points")),
    )


def _overfitted(group: list[MethodView]) -> list[Bilingual]:
    """The methods whose validation loss rose after its best epoch, and by how much."""
    facts = [(method, analyse(method.first, "epoch")) for method in group]
    risen = [
        spaced(
            code(method.name),
            translate(
                "ablation.rise",
                at=number(one.best_at, "number"),
                rise=number(one.validation_last - one.validation_best, "signed"),
            ),
        )
        for method, one in facts
        if one.overfit
    ]
    return [translate("ablation.overfit", methods=joined(risen))] if risen else []
