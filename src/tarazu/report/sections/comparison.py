"""Section 6: all methods in one table, on one pair of axes, tested pair by pair, and side by side in their own words."""

from __future__ import annotations

from functools import partial

from tarazu.report import charts
from tarazu.report.blocks import Cell, Table, best_index, figure_cell, text_cell
from tarazu.report.curve_analysis import curve
from tarazu.report.explain import explain
from tarazu.report.figures import Figure
from tarazu.report.measures import COSTS, ENERGY, FORGETTING, QUALITY, SPEED, UTILISATION, Measure, mean_over_seeds, over_seeds, primary, signed_form, unsigned
from tarazu.report.reading import Arm, StudyView, dig
from tarazu.report.sections.answers import arm_name, side_by_side
from tarazu.report.sections.base import Context, Section
from tarazu.report.sections.captions_comparison import captions_extras
from tarazu.report.sections.curves import axis_of, line_figure
from tarazu.report.text import Both, code, joined, number, say, spaced


def comparison_section(context: Context) -> Section:
    study, captions = context.study, context.study.task == "captions"
    samples = [] if captions else side_by_side(study)
    view = {
        "extras": captions_extras(context) if captions else None,
        "quality": quality_table(context),
        "costs": cost_table(study),
        "curves": validation_figure(context),
        "trades": [f for cost in COSTS if (f := trade_figure(context, cost)) is not None],
        "forest": forest_figure(context),
        "pairs": [pair_table(context, key) for key in context.comparison.pairs if context.comparison.pairs[key]],
        "findings": pair_findings(context),
        "rows_differ": joined([code(n) for n in context.comparison.rows_differ]) if context.comparison.rows_differ else None,
        "judge": judge_table(study),
        "samples": samples,
        "abilities": list(dict.fromkeys((s["ability"], s["label"]) for s in samples)),
    }
    view["judge_model"] = code(study.extras["judge"].get("model", "?")) if study.extras["judge"] else None
    pages = ("bleu", "caption-metrics", "fairness", "memory-and-time") if captions else ("fairness", "memory-and-time")
    return Section("comparison", say("section.comparison"), "comparison.html", view, explain(*pages))


def all_arms(study: StudyView) -> list[Arm]:
    return ([study.base] if study.base else []) + study.arms


def quality_table(context: Context) -> Table:
    """Quality of every method: mean over seeds, the interval where rows allow one, and the gain over the untouched model."""
    study, arms = context.study, all_arms(context.study)
    known = [m for m in QUALITY.get(study.task, []) if any(mean_over_seeds(a, m) is not None for a in arms)]
    best = {m.key: best_index([mean_over_seeds(a, m) for a in arms], m.better) for m in known}
    lead, rows = primary(study.task), []
    for i, arm in enumerate(arms):
        cells = [text_cell(arm_name(arm)), figure_cell(len(arm.measured), "count")]
        cells += [_with_interval(context, arm, m, best[m.key] == i) for m in known]
        if study.base:
            after, before = mean_over_seeds(arm, lead), mean_over_seeds(study.base, lead)
            gain = None if after is None or before is None or arm is study.base else lead.gain(after, before) / abs(before) if before else None
            cells.append(figure_cell(gain, "signed_percent", arm.first.file("metrics.json")))
        rows.append(cells)
    columns = [say("compare.method"), say("compare.seeds"), *[_heading(m) for m in known]]
    columns += [say("compare.gain")] if study.base else []
    return Table(say("compare.quality"), columns, rows, [run.file("metrics.json") for arm in arms for run in arm.measured], sortable=True)


def _heading(measure: Measure) -> Both:
    return spaced(say(f"measure.{measure.key}"), say(f"compare.{measure.better}"))


def _with_interval(context: Context, arm: Arm, measure: Measure, best: bool) -> Cell:
    value, source = mean_over_seeds(arm, measure), arm.first.file("metrics.json")
    shown = number(value, measure.form, source)
    found = context.comparison.intervals.get((arm.name, measure.key))
    if found is not None and measure.key in ("loss", "cider"):
        shown = spaced(shown, say("compare.interval", low=number(found.low, measure.form), high=number(found.high, measure.form)))
    several = over_seeds(arm, measure)
    if len(several) > 1 and measure is primary(context.study.task):
        shown = spaced(shown, say("compare.spread", low=number(min(several), measure.form), high=number(max(several), measure.form)))
    return Cell(shown, value, best)


def cost_table(study: StudyView) -> Table:
    """What every method cost: the mean over its seeds."""
    arms = study.arms
    known = [m for m in [*COSTS, SPEED, ENERGY, UTILISATION] if any(mean_over_seeds(a, m) is not None for a in arms)]
    best = {m.key: best_index([mean_over_seeds(a, m) for a in arms], m.better) for m in known}
    rows = []
    for i, arm in enumerate(arms):
        cells = [text_cell(arm_name(arm))]
        cells += [figure_cell(mean_over_seeds(arm, m), m.form, arm.first.file("ledger.json"), best[m.key] == i) for m in known]
        total = arm.first.ledger.get("total_parameters") or arm.first.facts.get("total_parameters")
        trained = mean_over_seeds(arm, COSTS[2])
        cells.append(figure_cell(trained / total if trained is not None and total else None, "share", arm.first.file("ledger.json")))
        rows.append(cells)
    columns = [say("compare.method"), *[_heading(m) for m in known], say("compare.trained_share")]
    return Table(say("compare.costs"), columns, rows, [run.file("ledger.json") for arm in arms for run in arm.runs if run.ledger], sortable=True)


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
    return line_figure(context, "curves-all", say("compare.curves"), series, title, say("axis.validation_loss"), sources)


def trade_figure(context: Context, cost: Measure, name: str | None = None) -> Figure | None:
    """Quality against one cost, with its Pareto front."""
    verdict, points = context.verdict, []
    for one in verdict.contenders:
        x = one.costs.get(cost.key)
        if x is not None and x > 0:
            found = context.comparison.intervals.get((one.name, verdict.measure.key))
            points.append({"name": one.name, "x": x, "y": one.quality, "low": found.low if found else None, "high": found.high if found else None})
    if not points:
        return None
    values = [p["x"] for p in points]
    make = partial(charts.trade, points, verdict.fronts[cost.key], say(f"axis.{cost.key}"), say(f"axis.{verdict.measure.key}"), log=max(values) > 20 * min(values))
    sources = [f for arm in context.study.arms for f in (arm.first.file("metrics.json"), arm.first.file("ledger.json"))]
    caption = say("compare.trade", cost=say(f"measure.{cost.key}"), quality=say(f"measure.{verdict.measure.key}"))
    return context.gallery.add(name or f"quality-{cost.key}", caption, lambda language: make(language=language), sources)


def forest_figure(context: Context) -> Figure | None:
    """Each method's difference from the untouched model, with its interval."""
    base, key = context.study.base, primary(context.study.task).key
    rows = []
    for arm in context.study.arms if base else []:
        pair = context.comparison.pair(key, base.name, arm.name)
        if pair is not None:
            sign = 1 if pair.a == arm.name else -1
            low, high = sorted((sign * pair.found.low, sign * pair.found.high))
            rows.append({"name": arm.name, "mean": sign * pair.found.mean, "low": low, "high": high, "sure": pair.sure})
    if not rows:
        return None
    make = partial(charts.forest, rows, say("axis.difference"))
    sources = [arm.first.file("metrics.json") for arm in [base, *context.study.arms]]
    return context.gallery.add("difference-from-base", say("compare.forest"), lambda language: make(language=language), sources)


def pair_table(context: Context, key: str) -> Table:
    """Every pair on one figure: difference, interval, corrected p, effect size, and what that says."""
    rows = []
    for pair in context.comparison.pairs[key]:
        form = signed_form(pair.measure)
        found = pair.found
        span = say("compare.interval", low=number(found.low, form), high=number(found.high, form))
        says = say("pair.winner", method=_name(context, pair.winner)) if pair.winner else say("pair.none", detectable=number(found.detectable, unsigned(form)))
        rows.append([
            Cell(spaced(_name(context, pair.a), say("pair.against"), _name(context, pair.b)), f"{pair.a} {pair.b}"), figure_cell(found.mean, form), Cell(span, found.low),
            figure_cell(pair.p, "p"), figure_cell(found.effect, "two"), text_cell(says),
        ])  # fmt: skip
    columns = [say("pair.pair"), say("pair.difference"), say("pair.interval"), say("pair.p"), say("pair.effect"), say("pair.says")]
    first = context.comparison.pairs[key][0].found
    caption = say("pair.caption", figure=say(f"measure.{key}"), rows=number(first.rows, "count"), seeds=number(first.seeds, "count"))
    file = "metrics.json" if key in ("loss", *FORGETTING) else "samples.jsonl"
    return Table(caption, columns, rows, [run.file(file) for arm in all_arms(context.study) for run in arm.measured], sortable=True)


def _name(context: Context, name: str) -> Both:
    arm = next((a for a in all_arms(context.study) if a.name == name), None)
    return arm_name(arm) if arm else Both(code(name), code(name))


def pair_findings(context: Context) -> list[Both]:
    """How many pairs differ on each figure, in one sentence each."""
    found = []
    for key, pairs in context.comparison.pairs.items():
        if pairs:
            sure = sum(p.sure for p in pairs)
            found.append(say("pair.summary", figure=say(f"measure.{key}"), pairs=number(len(pairs), "count"), sure=number(sure, "count"), none=number(len(pairs) - sure, "count")))
    return found


def judge_table(study: StudyView) -> Table | None:
    """What a judge model preferred, where `tarazu judge` was run."""
    found = study.extras["judge"].get("methods")
    if not isinstance(found, dict) or not found:
        return None
    rows = []
    for name, one in found.items():
        low, high = dig(one, "interval", 0), dig(one, "interval", 1)
        rate = spaced(number(dig(one, "win_rate"), "percent", "judge.json"), say("compare.interval", low=number(low, "percent"), high=number(high, "percent")))
        rows.append([Cell(code(name), name), Cell(rate, dig(one, "win_rate")), *[figure_cell(dig(one, k), "count", "judge.json") for k in ("win", "tie", "loss", "inconsistent", "no_verdict")]])
    columns = [say("compare.method"), say("judge.rate"), *[say(f"judge.{k}") for k in ("win", "tie", "loss", "inconsistent", "no_verdict")]]
    return Table(say("judge.table"), columns, rows, ["judge.json"], sortable=True)
