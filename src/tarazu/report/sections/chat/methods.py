"""Section 5 for chat: each method's idea, settings, proof, curves, troubles, and answers beside the base's."""

from __future__ import annotations

from tarazu.report.analysis.metrics import (
    QUALITY,
    TESTED,
    Measure,
    mean_over_seeds,
    signed_form,
    unsigned,
)
from tarazu.report.analysis.study_view import Arm
from tarazu.report.render.bilingual import (
    Bilingual,
    code,
    joined,
    number,
    say_or,
    spaced,
    translate,
)
from tarazu.report.render.explanations import explain, explain_kind
from tarazu.report.render.tables import Cell, Table, figure_cell, text_cell
from tarazu.report.sections.chat.answers import changes
from tarazu.report.sections.common.base import Context, Section
from tarazu.report.sections.common.curves import curve_sentences, loss_figure
from tarazu.report.sections.common.hyperparameter_search import search_view
from tarazu.report.sections.common.pairwise_tests import format_p
from tarazu.report.sections.common.proof_of_change import (
    proof_view,
    settings_table,
    targets_table,
    warnings_of,
)

FAMILIES = {
    "soft": (("prompt_tuning", "prefix_tuning", "p_tuning"), ("soft-prompts",)),
    "low_rank": (("lora", "rslora", "dora", "loha"), ("which-layers-for-lora",)),
    "layers": (("layers",), ()),
    "other": ((), ()),
}


def family_of(kind: str) -> str:
    return next((name for name, (kinds, _) in FAMILIES.items() if kind in kinds), "other")


def methods_section(context: Context) -> Section:
    told: set[str] = set()
    families = []
    for name, (_, pages) in FAMILIES.items():
        arms = [arm for arm in context.study.arms if family_of(arm.kind) == name]
        if arms:
            view = {
                "name": name,
                "title": translate(f"family.{name}"),
                "explanations": explain(*pages),
                "choice": family_choice(context, arms),
                "arms": [_arm(context, arm, told) for arm in arms],
            }
            families.append(view)
    view = {"families": families, "missing": not families}
    return Section(
        "methods",
        translate("section.methods"),
        "methods.html",
        view,
        explain("fingerprints", "curves"),
    )


def family_choice(context: Context, arms: list[Arm]) -> Bilingual | None:
    """Which of a family's methods these numbers speak for, and whether the next one is told apart from it."""
    verdict, names = context.verdict, {arm.name for arm in arms}
    ranked = [one for one in verdict.contenders if one.name in names]  # best first
    if len(ranked) < 2:
        return None
    shown = [
        spaced(
            code(one.name),
            number(
                one.quality,
                verdict.measure.form,
                context.study.arm(one.name).first.file("metrics.json"),
            ),
        )
        for one in ranked
    ]
    tied = [
        one.name
        for one in ranked[1:]
        if context.comparison.differ(verdict.measure.key, ranked[0].name, one.name) is False
    ]
    told = (
        translate("family.tied", methods=joined([code(name) for name in tied]))
        if tied
        else translate("family.sure")
    )
    return spaced(
        translate(
            "family.choice",
            figure=translate(f"measure.{verdict.measure.key}"),
            best=shown[0],
            others=joined(shown[1:]),
        ),
        told,
    )


def _arm(context: Context, arm: Arm, told: set[str]) -> dict:
    first = arm.kind not in told
    told.add(arm.kind)
    return {
        "name": code(arm.name),
        "anchor": f"method-{arm.name}",
        "kind": say_or(f"kind.{arm.kind}", arm.kind),
        "explanations": explain_kind(arm.kind) if first else [],
        "settings": settings_table(arm),
        "targets": targets_table(arm),
        "search": search_view(context, arm),
        "untrained": arm.untrained,
        "proofs": [(run.seed, view) for run in arm.runs if (view := proof_view(run, arm.runs[0]))],
        "figure": loss_figure(context, arm),
        "analysis": curve_sentences(context, arm),
        "troubles": warnings_of(arm),
        "beside_base": beside_base(context, arm),
        "figures": _against_base(context, arm),
        "changes": changes(context, arm),
    }


def beside_base(context: Context, arm: Arm) -> list[Bilingual]:
    """What the tests say of this method against the untouched model, figure by figure."""
    base, found = context.study.base, []
    if base is None:
        return []
    for key in TESTED["chat"]:
        pair = context.comparison.pair(key, base.name, arm.name)
        if pair is None:
            continue
        sign = 1 if pair.a == arm.name else -1
        ends = sorted((sign * pair.found.low, sign * pair.found.high))
        form = signed_form(pair.measure)
        values = {
            "figure": translate(f"measure.{key}"),
            "mean": number(sign * pair.found.mean, form),
            "low": number(ends[0], form),
            "high": number(ends[1], form),
            "p": format_p(pair),
        }
        outcome = "none" if not pair.sure else "better" if pair.winner == arm.name else "worse"
        found.append(
            translate(
                f"beside.{outcome}",
                **values,
                detectable=number(pair.found.detectable, unsigned(form)),
            )
        )
    return found


def _against_base(context: Context, arm: Arm) -> Table:
    """Every quality figure before and after, with the gain."""
    base, rows = context.study.base, []
    for measure in QUALITY["chat"]:
        after = mean_over_seeds(arm, measure)
        before = mean_over_seeds(base, measure) if base else None
        if after is None:
            continue
        change = None if before is None else after - before
        form = "percentage_points" if measure.form == "percent" else signed_form(measure)
        source = arm.first.file("metrics.json")
        rows.append(
            [
                text_cell(translate(f"measure.{measure.key}")),
                figure_cell(before, measure.form, base.first.file("metrics.json") if base else ""),
                figure_cell(after, measure.form, source),
                figure_cell(change, form, source),
                _direction(
                    measure,
                    change,
                    context.comparison.differ(measure.key, base.name, arm.name) if base else None,
                ),
            ]
        )
    columns = [
        translate("common.what"),
        translate("method.before"),
        translate("method.after"),
        translate("method.change"),
        translate("method.outcome"),
    ]
    return Table(
        translate("method.figures"),
        columns,
        rows,
        [run.file("metrics.json") for run in arm.measured],
    )


def _direction(measure: Measure, change: float | None, sure: bool | None) -> Cell:
    """Better or worse where the test is `sure`; that this may be chance where it is not; by the means where there is no test."""
    if change is None or abs(change) < 1e-9:
        return text_cell(translate("method.same"))
    if sure is False:
        return text_cell(translate("method.unsure"))
    way = "method.better" if (change < 0) == (measure.better == "low") else "method.worse"
    return text_cell(
        translate(way) if sure else spaced(translate(way), translate("method.untested"))
    )
