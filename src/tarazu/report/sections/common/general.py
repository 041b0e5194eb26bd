"""The report of a task that has none of its own: each method's training, and the numbers of results.json."""

from __future__ import annotations

from tarazu.report.analysis.metrics import LOSS, Metric, TaskMetrics
from tarazu.report.analysis.study_view import MethodView, StudyView, as_number
from tarazu.report.render.bilingual import Bilingual, code, joined, translate, translate_or
from tarazu.report.render.explanations import explain, explain_kind
from tarazu.report.sections.common.base import Context, Section, TaskReport
from tarazu.report.sections.common.curves import curve_sentences, loss_figure
from tarazu.report.sections.common.hyperparameter_search import search_view
from tarazu.report.sections.common.proof_of_change import (
    proof_view,
    settings_table,
    targets_table,
    training_issues,
)

# Keys of a row of results.json that describe the run and its costs.
NOT_QUALITY = {
    "seed",
    "trained_parameters",
    "trained_fraction",
    "train_seconds",
    "train_memory",
    "tokens_per_second",
    "weights_bytes",
}
# A metric whose name holds one of these words is better when it is lower.
LOWER_IS_BETTER = ("loss", "perplexity", "error", "bits_per_byte", "nll", "distance")


def general_report(study: StudyView) -> TaskReport:
    """The report of any task; its quality metrics are the numbers in results.json, loss first."""
    keys = {
        key
        for method in [*([study.base] if study.base else []), *study.methods]
        for run in method.runs
        for key, value in run.results.items()
        if key not in NOT_QUALITY and as_number(value) is not None
    }
    others = tuple(_metric(key) for key in sorted(keys - {LOSS.key}))
    quality = (LOSS, *others) if LOSS.key in keys or not others else others
    metrics = TaskMetrics(quality=quality, tested=(LOSS.key,) if LOSS in quality else ())
    return TaskReport(metrics=metrics, sections=(methods_section,), overview=compared)


def _metric(key: str) -> Metric:
    better = "low" if any(word in key for word in LOWER_IS_BETTER) else "high"
    return Metric(key, better, "number", "results.json", ((key,),))


def compared(context: Context) -> Bilingual:
    """Which methods were trained."""
    names = joined([code(method.name) for method in context.study.methods])
    return translate("overview.general", methods=names)


def methods_section(context: Context) -> Section:
    """Each method's settings, proof of change, curves and issues."""
    view = {"methods": [method_view(context, method) for method in context.study.methods]}
    return Section(
        "methods",
        translate("section.methods"),
        "methods.html",
        view,
        explain("fingerprints", "curves"),
    )


def method_view(context: Context, method: MethodView) -> dict:
    """What `method_parts.html` shows of a method."""
    return {
        "name": code(method.name),
        "anchor": f"method-{method.name}",
        "kind": translate_or(f"kind.{method.kind}", method.kind),
        "explanations": explain_kind(method.kind),
        "settings": settings_table(method),
        "targets": targets_table(method),
        "search": search_view(context, method),
        "untrained": method.untrained,
        "proofs": [
            (run.seed, view) for run in method.runs if (view := proof_view(run, method.runs[0]))
        ],
        "figure": loss_figure(context, method),
        "analysis": curve_sentences(context, method),
        "issues": training_issues(method),
    }
