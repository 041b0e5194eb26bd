"""The report of a task without its own: each method's training and the numbers of results.json."""

from __future__ import annotations

from tarazu.report.analysis.metrics import LOSS, Metric, TaskMetrics
from tarazu.report.analysis.study_view import StudyView, as_number
from tarazu.report.render.bilingual import Bilingual, translate
from tarazu.report.render.explanations import explain
from tarazu.report.sections.common.base import Context, Section, TaskReport
from tarazu.report.sections.common.method_names import all_methods, joined_code
from tarazu.report.sections.common.method_view import method_view

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
        for method in all_methods(study)
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
    names = joined_code([method.name for method in context.study.methods])
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
