"""Section 1: what was compared, on what, who won under which preference, how sure, and one picture."""

from __future__ import annotations

from tarazu.report.analysis.metrics import COSTS
from tarazu.report.analysis.study_view import as_number, get_path
from tarazu.report.render.bilingual import Bilingual, code, joined, number, translate
from tarazu.report.render.known_messages import translate_note
from tarazu.report.sections.common.base import Context, Section
from tarazu.report.sections.comparison import pareto_figure
from tarazu.report.sections.recommendation import choice_sentences, files_of


def overview_section(context: Context) -> Section:
    study = context.study
    view = {
        "compared": context.task.overview(context),
        "budget": _budget(study.settings),
        "prefer": translate(f"preference.{study.prefer}"),
        "verdict": choice_sentences(context, context.verdict.choices[study.prefer]),
        "files": files_of(context),
        "figure": next(
            (f for cost in COSTS if (f := pareto_figure(context, cost, "verdict")) is not None),
            None,
        ),
        "note": translate_note(study.data["note"]) if study.data.get("note") else None,
        "unfinished": _unfinished(context),
        "broken": joined([code(p) for p in study.problems]) if study.problems else None,
    }
    return Section("overview", translate("section.overview"), "overview.html", view)


def _budget(settings: dict) -> Bilingual | None:
    tokens, epochs = (
        as_number(get_path(settings, "budget", "tokens")),
        as_number(get_path(settings, "budget", "epochs")),
    )
    if tokens:
        return translate("overview.budget_tokens", tokens=number(tokens, "count", "resolved.yaml"))
    return (
        translate("overview.budget_epochs", epochs=number(epochs, "number", "resolved.yaml"))
        if epochs
        else None
    )


def _unfinished(context: Context) -> list[Bilingual]:
    """Runs that did not come to their end, so that nobody reads half a study as a whole one."""
    found = []
    for method in context.study.methods:
        for run in method.runs:
            if run.status != "done":
                status = run.status if run.status in ("failed", "stopped", "running") else "stopped"
                found.append(
                    translate(
                        f"overview.{status}",
                        method=code(method.name),
                        seed=number(run.seed, "count"),
                    )
                )
    return found
