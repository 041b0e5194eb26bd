"""The overview: what was compared, the recommended method, unfinished runs, and one figure."""

from __future__ import annotations

from tarazu.report.analysis.metrics import COSTS
from tarazu.report.analysis.study_view import as_number, get_path
from tarazu.report.render.bilingual import Bilingual, code, number, translate
from tarazu.report.render.figures import Figure
from tarazu.report.render.known_messages import translate_note
from tarazu.report.sections.common.base import Context, Section
from tarazu.report.sections.common.method_names import joined_code
from tarazu.report.sections.common.proof_of_change import UNFINISHED
from tarazu.report.sections.comparison import pareto_figure
from tarazu.report.sections.recommendation import choice_sentences, recommendation_files


def overview_section(context: Context) -> Section:
    """The first section of every report."""
    study = context.study
    view = {
        "compared": context.task.overview(context),
        "budget": _budget(study.settings),
        "preference": translate(f"preference.{study.prefer}"),
        "recommendation": choice_sentences(context, context.verdict.choices[study.prefer]),
        "files": recommendation_files(context),
        "figure": _first_pareto_figure(context),
        "note": translate_note(study.data["note"]) if study.data.get("note") else None,
        "unfinished": _unfinished(context),
        "unreadable": joined_code(study.problems) if study.problems else None,
    }
    return Section("overview", translate("section.overview"), "overview.html", view)


def _budget(settings: dict) -> Bilingual | None:
    """How long every method was trained: a number of tokens, else of epochs."""
    tokens = as_number(get_path(settings, "budget", "tokens"))
    epochs = as_number(get_path(settings, "budget", "epochs"))
    if tokens:
        return translate("overview.budget_tokens", tokens=number(tokens, "count", "resolved.yaml"))
    if epochs:
        shown = number(epochs, "number", "resolved.yaml")
        return translate("overview.budget_epochs", epochs=shown)
    return None


def _first_pareto_figure(context: Context) -> Figure | None:
    """Quality against the first cost that was measured."""
    figures = (pareto_figure(context, cost, "verdict") for cost in COSTS)
    return next((figure for figure in figures if figure is not None), None)


def _unfinished(context: Context) -> list[Bilingual]:
    """One sentence for each run that did not finish, so that a partial study is recognised."""
    sentences = []
    for method in context.study.methods:
        for run in (run for run in method.runs if run.status != "done"):
            status = run.status if run.status in UNFINISHED else "stopped"
            seed = number(run.seed, "count")
            sentences.append(translate(f"overview.{status}", method=code(method.name), seed=seed))
    return sentences
