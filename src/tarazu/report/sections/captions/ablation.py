"""Ablation: methods of one kind compared with the first of them, on the same images."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from typing import Any

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
    spaced,
    translate,
    translate_or,
)
from tarazu.report.render.figures import Figure
from tarazu.report.render.tables import Cell, Table, number_cell, text_cell
from tarazu.report.sections.captions.metrics import METRICS
from tarazu.report.sections.common.base import EPOCHS, Context
from tarazu.report.sections.common.cells import first_files, translate_all, with_interval
from tarazu.report.sections.common.method_names import joined_code, method_name
from tarazu.report.sections.common.pairwise_tests import difference_of, forest_rows

MIN_METHODS = 3  # of one kind: two methods are a comparison, not an ablation
ENSEMBLE = "ensemble"
METRIC = "cider"


@dataclass(frozen=True)
class AblationDifference:
    """The paired difference of one method minus the first one."""

    method: MethodView
    mean: float
    low: float
    high: float
    pair: Pair


def ablation_view(context: Context) -> list[dict]:
    """For each kind with several methods: the table, a figure of the differences, and sentences."""
    views = []
    for group in groups(context.study.methods):
        first = group[0]
        differences = [difference_from(context, METRIC, first, method) for method in group[1:]]
        known = [difference for difference in differences if difference is not None]
        views.append(
            {
                "kind": first.kind,
                "name": translate_or(f"kind.{first.kind}", first.kind),
                "sentences": sentences(group, known),
                "table": table(context, group),
                "figure": figure(context, group, known),
            }
        )
    return views


def groups(methods: list[MethodView]) -> list[list[MethodView]]:
    """The methods of each kind in the recipe's order, with the ensembles that consist of them."""
    by_kind: dict[str, list[MethodView]] = {}
    for method in methods:
        if method.kind != ENSEMBLE:
            by_kind.setdefault(method.kind, []).append(method)
    ensembles = [method for method in methods if method.kind == ENSEMBLE and members(method)]
    large = [group for group in by_kind.values() if len(group) >= MIN_METHODS]
    for group in large:
        names = {method.name for method in group}
        group += [ensemble for ensemble in ensembles if members(ensemble) <= names]
    return large


def members(method: MethodView) -> set[str]:
    """The names of the methods that an ensemble consists of."""
    return {str(m).partition("/")[0] for m in get_path(settings(method), "members", default=[])}


def settings(method: MethodView) -> dict:
    """The settings of a method as its run recorded them."""
    return get_path(method.first.run_info, "settings", default={})


def changed_settings(first: MethodView, method: MethodView) -> list[str]:
    """`setting: value` for each setting that is not the first method's."""
    if method.kind != first.kind:
        return [f"{method.kind}: {', '.join(sorted(members(method)))}"]
    own, reference = settings(method), settings(first)
    changed = [key for key in {**reference, **own} if own.get(key) != reference.get(key)]
    return [f"{key}: {_recipe_text(own.get(key))}" for key in changed]


def _recipe_text(value: Any) -> str:
    """A value as a recipe has it."""
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False).replace('"', "")


def difference_from(
    context: Context, key: str, first: MethodView, method: MethodView
) -> AblationDifference | None:
    """The difference in one metric; None where the two were not tested on the same images."""
    pair = context.comparison.pair(key, first.name, method.name)
    if pair is None:
        return None
    return AblationDifference(method, *difference_of(pair, method.name), pair)


def table(context: Context, group: list[MethodView]) -> Table:
    """One row for each method: changed settings, losses, scores, differences from the first."""
    first = group[0]
    columns = translate_all(
        "compare.method",
        "ablation.differs",
        "ablation.best_epoch",
        "ablation.train_loss",
        "ablation.validation_loss",
        "ablation.gap",
        "metric.bleu4",
        "metric.cider",
        "ablation.cider",
        "ablation.bleu4",
    )
    rows = [
        [
            text_cell(method_name(method)),
            _settings_cell(first, method),
            *_curve_cells(method),
            *[_score_cell(method, key) for key in ("bleu4", "cider")],
            *[_difference_cell(context, key, first, method) for key in ("cider", "bleu4")],
        ]
        for method in group
    ]
    files = first_files(group, "events.jsonl", "metrics.json")
    caption = translate("ablation.table", first=code(first.name))
    return Table(caption, columns, rows, files, sortable=True)


def _settings_cell(first: MethodView, method: MethodView) -> Cell:
    """The settings that differ from the first method's."""
    if method is first:
        return text_cell(translate("ablation.first"))
    changed = changed_settings(first, method)
    return Cell(joined_code(changed), ", ".join(changed))


def _curve_cells(method: MethodView) -> list[Cell]:
    """Best epoch, training loss, best and last validation loss, and the final gap."""
    facts, source = analyse(method.first, EPOCHS), method.first.file("events.jsonl")
    if facts.best_at is None:  # an ensemble has no training of its own
        return [number_cell(None, "loss")] * 4
    epochs = {
        "best": number(facts.best_at, "number", source),
        "last": number(facts.end_at, "number", source),
    }
    losses = {
        "best": number(facts.validation_best, "loss", source),
        "last": number(facts.validation_last, "loss", source),
    }
    return [
        Cell(translate("ablation.of", **epochs), facts.best_at),
        number_cell(facts.train_last, "loss", source),
        Cell(translate("ablation.then", **losses), facts.validation_last),
        number_cell(facts.gap, "signed", source),
    ]


def _score_cell(method: MethodView, key: str) -> Cell:
    """A corpus score with its bootstrap interval."""
    score = mean_over_seeds(method, METRICS.by_key[key])
    interval = get_path(method.first.metrics, "decoding", "beam3", "intervals", key, default=[])
    low, high = get_path(interval, 0), get_path(interval, 1)
    text = number(score, "points", method.first.file("metrics.json"))
    return Cell(with_interval(text, low, high, "points"), score)


def _difference_cell(context: Context, key: str, first: MethodView, method: MethodView) -> Cell:
    """The mean difference over the images, its interval, and whether it is significant."""
    if method is first:
        return number_cell(0.0, "signed_points")
    difference = difference_from(context, key, first, method)
    if difference is None:
        return number_cell(None, "signed_points")
    mean = number(difference.mean, "signed_points", method.first.file("samples.jsonl"))
    text = with_interval(mean, difference.low, difference.high, "signed_points")
    significant = difference.pair.significant
    outcome = translate("ablation.significant" if significant else "ablation.no_difference")
    return Cell(spaced(text, outcome), difference.mean)


def figure(
    context: Context, group: list[MethodView], differences: list[AblationDifference]
) -> Figure | None:
    """Each method's difference from the first in CIDEr, with its interval."""
    if not differences:
        return None
    rows = forest_rows([(d.method.name, d.pair) for d in differences])
    make = partial(charts.forest_plot, rows, translate("axis.cider_difference"))
    caption = translate("ablation.figure", first=code(group[0].name))
    files = first_files(group, "samples.jsonl")
    return context.figures.add(f"ablation-{group[0].kind}", caption, make, files)


def sentences(group: list[MethodView], differences: list[AblationDifference]) -> list[Bilingual]:
    """Which methods are significantly better or worse than the first, and which overfit."""
    first, found = code(group[0].name), []
    significant = [d for d in differences if d.pair.significant]
    for key, sign in (("ablation.better", 1), ("ablation.worse", -1)):
        named = sorted((d for d in significant if sign * d.mean > 0), key=lambda d: -abs(d.mean))
        if named:
            names = joined([_with_mean(difference) for difference in named])
            found.append(translate(key, first=first, methods=names))
    same = [difference for difference in differences if not difference.pair.significant]
    if same:
        detectable = max(difference.pair.difference.min_detectable for difference in same)
        names = joined_code([difference.method.name for difference in same])
        values = {"methods": names, "detectable": number(detectable, "points")}
        found.append(translate("ablation.same", first=first, **values))
    return found + _overfitting_sentence(group)


def _with_mean(difference: AblationDifference) -> Bilingual:
    mean = number(difference.mean, "signed_points")
    return spaced(code(difference.method.name), translate("common.in_brackets", what=mean))


def _overfitting_sentence(group: list[MethodView]) -> list[Bilingual]:
    """The methods whose validation loss rose after its best epoch, and by how much."""
    named = []
    for method in group:
        facts = analyse(method.first, EPOCHS)
        if facts.overfit:
            rise = number(facts.validation_last - facts.validation_best, "signed")
            epoch = number(facts.best_at, "number")
            named.append(spaced(code(method.name), translate("ablation.rise", at=epoch, rise=rise)))
    return [translate("ablation.overfit", methods=joined(named))] if named else []
