"""Arms of one kind side by side: what one setting more or less does, beside the first arm (captions)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial

from tarazu.report.analysis.comparison import Pair
from tarazu.report.analysis.curves import analyse
from tarazu.report.analysis.metrics import mean_over_seeds, measures
from tarazu.report.analysis.study_view import Arm, get_path
from tarazu.report.render import charts
from tarazu.report.render.bilingual import (
    Bilingual,
    code,
    joined,
    number,
    say_or,
    small_note,
    spaced,
    translate,
)
from tarazu.report.render.figures import Figure
from tarazu.report.render.tables import Cell, Table, figure_cell, text_cell
from tarazu.report.sections.chat.answers import arm_name
from tarazu.report.sections.common.base import Context

LEAST = 3  # arms of a kind: two are a comparison, not an ablation
LEAD = "cider"


@dataclass(frozen=True)
class Against:
    """One arm minus the first one, on the same images."""

    arm: Arm
    mean: float
    low: float
    high: float
    pair: Pair


def ablation_view(context: Context) -> list[dict]:
    """For each kind that several arms share: the table, a figure of the differences, and what they say."""
    views = []
    for group in groups(context.study.arms):
        found = [
            one for arm in group[1:] if (one := against(context, LEAD, group[0], arm)) is not None
        ]
        views.append(
            {
                "kind": group[0].kind,
                "name": say_or(f"kind.{group[0].kind}", group[0].kind),
                "sentences": sentences(group, found),
                "table": table(context, group),
                "figure": figure(context, group, found),
            }
        )
    return views


def groups(arms: list[Arm]) -> list[list[Arm]]:
    """Arms of one kind, the recipe's first one first; an ensemble stands with the arms that it is made of."""
    kinds: dict[str, list[Arm]] = {}
    for arm in arms:
        if arm.kind != "ensemble":
            kinds.setdefault(arm.kind, []).append(arm)
    found = [group for group in kinds.values() if len(group) >= LEAST]
    for group in found:
        names = {arm.name for arm in group}
        group += [
            arm for arm in arms if arm.kind == "ensemble" and members(arm) and members(arm) <= names
        ]
    return found


def members(arm: Arm) -> set[str]:
    """The methods that an ensemble is made of."""
    return {str(one).partition("/")[0] for one in get_path(settings(arm), "of", default=[])}


def settings(arm: Arm) -> dict:
    return get_path(arm.first.facts, "settings", default={})


def what_differs(first: Arm, arm: Arm) -> list[str]:
    """`setting: value` for each setting in which an arm is not the first one."""
    if arm.kind != first.kind:
        return [f"{arm.kind}: {', '.join(sorted(members(arm)))}"]
    mine, other = settings(arm), settings(first)
    changed = [key for key in {**other, **mine} if mine.get(key) != other.get(key)]
    return [f"{key}: {_written(mine.get(key))}" for key in changed]


def _written(value) -> str:
    """A setting's value as a recipe has it."""
    return (
        value if isinstance(value, str) else json.dumps(value, ensure_ascii=False).replace('"', "")
    )


def against(context: Context, key: str, first: Arm, arm: Arm) -> Against | None:
    """The paired difference in one figure; None where the two did not describe the same images."""
    pair = context.comparison.pair(key, first.name, arm.name)
    if pair is None:
        return None
    sign = 1 if pair.a == arm.name else -1
    low, high = sorted((sign * pair.found.low, sign * pair.found.high))
    return Against(arm, sign * pair.found.mean, low, high, pair)


def table(context: Context, group: list[Arm]) -> Table:
    """One row per arm: what differs, how it learned, what it scores, and how far it is from the first."""
    first = group[0]
    names = ("differs", "best_epoch", "train_loss", "validation_loss", "gap")
    columns = [translate("compare.method"), *[translate(f"ablation.{name}") for name in names]]
    columns += [
        translate("measure.bleu4"),
        translate("measure.cider"),
        translate("ablation.cider"),
        translate("ablation.bleu4"),
    ]
    rows = [
        [
            text_cell(arm_name(arm)),
            _differs(first, arm),
            *_curve_cells(arm),
            *_score_cells(context, first, arm),
        ]
        for arm in group
    ]
    sources = [
        run
        for arm in group
        for run in (arm.first.file("events.jsonl"), arm.first.file("metrics.json"))
    ]
    return Table(
        translate("ablation.table", first=code(first.name)), columns, rows, sources, sortable=True
    )


def _differs(first: Arm, arm: Arm) -> Cell:
    if arm is first:
        return text_cell(translate("ablation.first"))
    changed = what_differs(first, arm)
    return Cell(
        joined([code(one) for one in changed]) if changed else translate("common.none"),
        ", ".join(changed),
    )


def _curve_cells(arm: Arm) -> list[Cell]:
    """Best of all epochs, training loss, validation loss (least, then last), and the gap between the last two."""
    facts, source = analyse(arm.first, "epoch"), arm.first.file("events.jsonl")
    if facts.best_at is None:
        return [figure_cell(None, "loss")] * 4  # it trains nothing of its own
    epochs = translate(
        "ablation.of",
        best=number(facts.best_at, "number", source),
        last=number(facts.end_at, "number", source),
    )
    best, last = (number(v, "loss", source) for v in (facts.validation_best, facts.validation_last))
    return [
        Cell(epochs, facts.best_at),
        figure_cell(facts.train_last, "loss", source),
        Cell(translate("ablation.then", best=best, last=last), facts.validation_last),
        figure_cell(facts.gap, "signed", source),
    ]


def _score_cells(context: Context, first: Arm, arm: Arm) -> list[Cell]:
    source, known = arm.first.file("metrics.json"), measures("captions")
    cells = []
    for key in ("bleu4", LEAD):
        low, high = (
            get_path(arm.first.metrics, "decoding", "beam3", "intervals", key, side)
            for side in (0, 1)
        )
        span = small_note(
            translate("compare.interval", low=number(low, "points"), high=number(high, "points"))
        )
        value = mean_over_seeds(arm, known[key])
        cells.append(Cell(spaced(number(value, "points", source), span), value))
    return cells + [_difference(context, key, first, arm) for key in (LEAD, "bleu4")]


def _difference(context: Context, key: str, first: Arm, arm: Arm) -> Cell:
    found = None if arm is first else against(context, key, first, arm)
    if found is None:
        return figure_cell(None if arm is not first else 0.0, "signed_points")
    low, high = (number(value, "signed_points") for value in (found.low, found.high))
    span = small_note(translate("compare.interval", low=low, high=high))
    says = translate("ablation.sure") if found.pair.sure else translate("ablation.unsure")
    return Cell(
        spaced(number(found.mean, "signed_points", arm.first.file("samples.jsonl")), span, says),
        found.mean,
    )


def figure(context: Context, group: list[Arm], found: list[Against]) -> Figure | None:
    """Each arm's difference from the first in CIDEr, with its interval."""
    if not found:
        return None
    rows = [
        {
            "name": one.arm.name,
            "mean": one.mean,
            "low": one.low,
            "high": one.high,
            "sure": one.pair.sure,
        }
        for one in found
    ]
    make = partial(charts.forest_plot, rows, translate("axis.cider_difference"))
    caption = translate("ablation.figure", first=code(group[0].name))
    sources = [arm.first.file("samples.jsonl") for arm in group]
    return context.gallery.add(
        f"ablation-{group[0].kind}", caption, lambda language: make(language=language), sources
    )


def sentences(group: list[Arm], found: list[Against]) -> list[Bilingual]:
    """Who is surely better or worse than the first arm, who cannot be told from it, and who over-fitted."""
    first, told = code(group[0].name), []
    better = [one for one in found if one.pair.sure and one.mean > 0]
    worse = [one for one in found if one.pair.sure and one.mean < 0]
    same = [one for one in found if not one.pair.sure]
    for key, some in (("better", better), ("worse", worse)):
        if some:
            some = sorted(some, key=lambda one: -abs(one.mean))
            told.append(
                translate(
                    f"ablation.{key}", first=first, arms=joined([_by_how_much(one) for one in some])
                )
            )
    if same:
        reach = number(max(one.pair.found.detectable for one in same), "points")
        told.append(
            translate(
                "ablation.same",
                first=first,
                arms=joined([code(one.arm.name) for one in same]),
                reach=reach,
            )
        )
    return told + _overfitted(group)


def _by_how_much(one: Against) -> Bilingual:
    return spaced(
        code(one.arm.name), translate("common.in_brackets", what=number(one.mean, "signed_points"))
    )


def _overfitted(group: list[Arm]) -> list[Bilingual]:
    """The arms whose validation loss rose after its best epoch, and by how much."""
    facts = [(arm, analyse(arm.first, "epoch")) for arm in group]
    risen = [
        spaced(
            code(arm.name),
            translate(
                "ablation.rise",
                at=number(one.best_at, "number"),
                rise=number(one.validation_last - one.validation_best, "signed"),
            ),
        )
        for arm, one in facts
        if one.overfit
    ]
    return [translate("ablation.overfit", arms=joined(risen))] if risen else []
