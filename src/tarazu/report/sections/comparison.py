"""Section 6: all methods in one table, on one pair of axes, and side by side in their own words."""

from __future__ import annotations

from functools import partial

from tarazu.report.analysis.curves import curve
from tarazu.report.analysis.metrics import (
    COSTS,
    ENERGY,
    FLOPS,
    PARETO_COSTS,
    QUALITY,
    SPEED,
    TESTED,
    UTILISATION,
    Measure,
    mean_over_seeds,
    over_seeds,
    primary,
)
from tarazu.report.analysis.study_view import Arm, StudyView, as_number, get_path
from tarazu.report.render import charts
from tarazu.report.render.bilingual import (
    Bilingual,
    code,
    joined,
    number,
    small_note,
    spaced,
    translate,
)
from tarazu.report.render.explanations import explain
from tarazu.report.render.figures import Figure
from tarazu.report.render.tables import Cell, Table, best_of, figure_cell, text_cell
from tarazu.report.sections.captions.comparison import captions_extras
from tarazu.report.sections.chat.answers import all_arms, arm_name, omission_note, side_by_side
from tarazu.report.sections.chat.side_effects import forgetting_sentences, reading_table
from tarazu.report.sections.common.base import Context, Section
from tarazu.report.sections.common.curves import axis_of, line_figure
from tarazu.report.sections.common.pairwise_tests import forest_figure, pair_findings, pair_table


def comparison_section(context: Context) -> Section:
    study, captions = context.study, context.study.task == "captions"
    samples = [] if captions else side_by_side(context)
    view = {
        "extras": captions_extras(context) if captions else None,
        "quality": quality_table(context),
        "costs": cost_table(study),
        "computing": computing(study),
        "curves": validation_figure(context),
        "trades": [f for cost in PARETO_COSTS if (f := trade_figure(context, cost)) is not None],
        "forest": forest_figure(context),
        "pairs": [
            pair_table(context, key)
            for key in TESTED.get(study.task, [])
            if context.comparison.pairs.get(key)
        ],
        "findings": pair_findings(context),
        "rows_differ": joined([code(n) for n in context.comparison.rows_differ])
        if context.comparison.rows_differ
        else None,
        "judge": judge_table(study),
        "forgetting": forgetting_sentences(context),
        "forgetting_files": [
            run.file("metrics.json") for arm in all_arms(study) for run in arm.measured
        ],
        "reading": reading_table(context),
        "samples": samples,
        "part": omission_note(context),
        "answer_files": [
            arm.first.file("samples.jsonl") for arm in all_arms(study) if arm.first.samples
        ],
        "abilities": list(dict.fromkeys((s["ability"], s["label"]) for s in samples)),
    }
    view["judge_against"] = judged_against(study)
    view["judge_model"] = (
        code(study.extras["judge"].get("model", "?")) if study.extras["judge"] else None
    )
    pages = (
        ("bleu", "caption-metrics", "fairness", "memory-and-time")
        if captions
        else ("fairness", "memory-and-time", "forgetting")
    )
    return Section(
        "comparison", translate("section.comparison"), "comparison.html", view, explain(*pages)
    )


def quality_table(context: Context) -> Table:
    """Quality of every method: mean over seeds, an interval where rows allow one, and the gain over the base."""
    study, arms = context.study, all_arms(context.study)
    known = [
        m
        for m in QUALITY.get(study.task, [])
        if any(mean_over_seeds(a, m) is not None for a in arms)
    ]
    best = {m.key: best_of([mean_over_seeds(a, m) for a in arms], m.better) for m in known}
    lead, rows = primary(study.task), []
    for i, arm in enumerate(arms):
        cells = [text_cell(arm_name(arm)), figure_cell(len(arm.measured), "count")]
        cells += [_with_interval(context, arm, m, i in best[m.key]) for m in known]
        if study.base:
            after, before = mean_over_seeds(arm, lead), mean_over_seeds(study.base, lead)
            gain = (
                None
                if after is None or before is None or arm is study.base
                else lead.gain(after, before) / abs(before)
                if before
                else None
            )
            cells.append(figure_cell(gain, "signed_percent", arm.first.file("metrics.json")))
        rows.append(cells)
    columns = [
        translate("compare.method"),
        translate("compare.seeds"),
        *[_heading(m) for m in known],
    ]
    columns += [translate("compare.gain")] if study.base else []
    return Table(
        translate("compare.quality"),
        columns,
        rows,
        [run.file("metrics.json") for arm in arms for run in arm.measured],
        sortable=True,
    )


def _heading(measure: Measure) -> Bilingual:
    return spaced(translate(f"measure.{measure.key}"), translate(f"compare.{measure.better}"))


def _with_interval(context: Context, arm: Arm, measure: Measure, best: bool) -> Cell:
    value, source = mean_over_seeds(arm, measure), arm.first.file("metrics.json")
    shown = number(value, measure.form, source)
    found = context.comparison.intervals.get((arm.name, measure.key))
    if found is not None and measure.key in ("loss", "cider"):
        shown = spaced(
            shown,
            small_note(
                translate(
                    "compare.interval",
                    low=number(found.low, measure.form),
                    high=number(found.high, measure.form),
                )
            ),
        )
    several = over_seeds(arm, measure)
    if len(several) > 1 and measure is primary(context.study.task):
        shown = spaced(
            shown,
            small_note(
                translate(
                    "compare.spread",
                    low=number(min(several), measure.form),
                    high=number(max(several), measure.form),
                )
            ),
        )
    return Cell(shown, value, best)


def cost_table(study: StudyView) -> Table:
    """What every method cost: the mean over its seeds."""
    arms = study.arms
    known = [
        m
        for m in [*COSTS, SPEED, ENERGY, FLOPS, UTILISATION]
        if any(mean_over_seeds(a, m) is not None for a in arms)
    ]
    best = {m.key: best_of([mean_over_seeds(a, m) for a in arms], m.better) for m in known}
    rows = []
    for i, arm in enumerate(arms):
        cells = [text_cell(arm_name(arm))]
        cells += [
            figure_cell(
                mean_over_seeds(arm, m), m.form, arm.first.file("ledger.json"), i in best[m.key]
            )
            for m in known
        ]
        total = as_number(arm.first.ledger.get("total_parameters")) or as_number(
            arm.first.facts.get("total_parameters")
        )
        trained = mean_over_seeds(arm, COSTS[2])
        cells.append(
            figure_cell(
                trained / total if trained is not None and total else None,
                "share",
                arm.first.file("ledger.json"),
            )
        )
        rows.append(cells)
    columns = [
        translate("compare.method"),
        *[_heading(m) for m in known],
        translate("compare.trained_share"),
    ]
    return Table(
        translate("compare.costs"),
        columns,
        rows,
        [run.file("ledger.json") for arm in arms for run in arm.runs if run.ledger],
        sortable=True,
    )


def computing(study: StudyView) -> list[Bilingual]:
    """What a token's training takes beside how much is trained, and the rate that utilisation is a share of."""
    found, known = (
        [],
        [
            (f, p, arm)
            for arm in study.arms
            if (f := mean_over_seeds(arm, FLOPS)) and (p := mean_over_seeds(arm, COSTS[2]))
        ],
    )
    if len(known) > 1:
        ends = {
            "least": min(known, key=lambda one: one[0]),
            "most": max(known, key=lambda one: one[0]),
        }
        values = {
            key: number(one[0], FLOPS.form, one[2].first.file("ledger.json"))
            for key, one in ends.items()
        }
        names = {f"{key}_name": code(one[2].name) for key, one in ends.items()}
        trained = [one[1] for one in known]
        spread = {
            "times": number(ends["most"][0] / ends["least"][0], "two"),
            "trained": number(max(trained) / min(trained), "count"),
        }
        found.append(translate("compare.flops", **values, **names, **spread))
    rates = {
        str(get_path(run.ledger, "device_matmul_flops")): run
        for arm in study.arms
        for run in arm.runs
        if as_number(get_path(run.ledger, "device_matmul_flops"))
    }
    if rates:
        told = [
            number(
                as_number(get_path(run.ledger, "device_matmul_flops")),
                "flops",
                run.file("ledger.json"),
            )
            for run in rates.values()
        ]
        found.append(translate("compare.matmul", rates=joined(told)))
    return found


def validation_figure(context: Context) -> Figure | None:
    """Every method's validation loss on one pair of axes."""
    field, title, _ = axis_of(context)
    series = []
    for i, arm in enumerate(context.study.arms):
        points = curve(arm.first, "validation", field)
        if points:
            series.append(charts.Series(arm.name, points.x, points.y, i, i // len(charts.PALETTE)))
    if not series:
        return None
    sources = [arm.first.file("events.jsonl") for arm in context.study.arms]
    return line_figure(
        context,
        "curves-all",
        translate("compare.curves"),
        series,
        title,
        translate("axis.validation_loss"),
        sources,
    )


def trade_figure(context: Context, cost: Measure, name: str | None = None) -> Figure | None:
    """Quality against one cost, with its Pareto front."""
    verdict, points = context.verdict, []
    for one in verdict.contenders:
        x = one.costs.get(cost.key)
        if x is not None and x > 0:
            found = context.comparison.intervals.get((one.name, verdict.measure.key))
            points.append(
                {
                    "name": one.name,
                    "x": x,
                    "y": one.quality,
                    "low": found.low if found else None,
                    "high": found.high if found else None,
                }
            )
    if not points:
        return None
    values = [p["x"] for p in points]
    make = partial(
        charts.pareto_chart,
        points,
        verdict.fronts[cost.key],
        translate(f"axis.{cost.key}"),
        translate(f"axis.{verdict.measure.key}"),
        log=max(values) > 20 * min(values),
    )
    sources = [
        f
        for arm in context.study.arms
        for f in (arm.first.file("metrics.json"), arm.first.file("ledger.json"))
    ]
    caption = translate(
        "compare.trade",
        cost=translate(f"measure.{cost.key}"),
        quality=translate(f"measure.{verdict.measure.key}"),
    )
    return context.gallery.add(
        name or f"quality-{cost.key}", caption, lambda language: make(language=language), sources
    )


def judge_table(study: StudyView) -> Table | None:
    """What a judge model preferred, where `tarazu judge` was run."""
    found = study.extras["judge"].get("methods")
    if not isinstance(found, dict) or not found:
        return None
    rows = []
    for name, one in found.items():
        low, high = get_path(one, "interval", 0), get_path(one, "interval", 1)
        rate = spaced(
            number(get_path(one, "win_rate"), "percent", "judge.json"),
            small_note(
                translate(
                    "compare.interval", low=number(low, "percent"), high=number(high, "percent")
                )
            ),
        )
        rows.append(
            [
                Cell(code(name), name),
                Cell(rate, get_path(one, "win_rate")),
                *[
                    figure_cell(get_path(one, k), "count", "judge.json")
                    for k in ("win", "tie", "loss", "inconsistent", "no_verdict")
                ],
            ]
        )
    columns = [
        translate("compare.method"),
        translate("judge.rate"),
        *[translate(f"judge.{k}") for k in ("win", "tie", "loss", "inconsistent", "no_verdict")],
    ]
    return Table(
        translate("judge.table", against=judged_against(study)),
        columns,
        rows,
        [
            "judge.json",
            *[file for name in found if (study.path / (file := f"judge/{name}.jsonl")).exists()],
        ],
        sortable=True,
    )


def judged_against(study: StudyView) -> Bilingual:
    """The method whose answers stood beside the others' before the judge."""
    name = study.extras["judge"].get("against")
    return (
        translate("judge.base")
        if name is None or (study.base and name == study.base.name)
        else Bilingual(code(name), code(name))
    )
