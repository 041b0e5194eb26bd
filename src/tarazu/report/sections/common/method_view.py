"""What the section of methods shows of every method, whatever the task."""

from __future__ import annotations

from collections.abc import Iterable

from tarazu.report.analysis.study_view import MethodView
from tarazu.report.render.bilingual import code, translate_or
from tarazu.report.render.explanations import explain_kind
from tarazu.report.sections.common.base import Context
from tarazu.report.sections.common.curves import curve_sentences, loss_figure
from tarazu.report.sections.common.hyperparameter_search import search_view
from tarazu.report.sections.common.proof_of_change import (
    proof_view,
    settings_table,
    targets_table,
    training_issues,
)


def method_view(context: Context, method: MethodView) -> dict:
    """What `method_parts.html` shows of a method.

    The explanations of a kind stand with its first method, so that the page has them once.
    """
    proofs = [(run.seed, proof_view(run, method.runs[0])) for run in method.runs]
    return {
        "name": code(method.name),
        "anchor": f"method-{method.name}",
        "kind": translate_or(f"kind.{method.kind}", method.kind),
        "explanations": explain_kind(method.kind)
        if is_first_of_kind(context.study.methods, method)
        else [],
        "settings": settings_table(method),
        "targets": targets_table(method),
        "search": search_view(context, method),
        "untrained": method.untrained,
        "proofs": [(seed, proof) for seed, proof in proofs if proof],
        "figure": loss_figure(context, method),
        "analysis": curve_sentences(context, method),
        "issues": training_issues(method),
    }


def is_first_of_kind(methods: Iterable[MethodView], method: MethodView) -> bool:
    """Whether no method of the same kind comes before this one."""
    return next(other for other in methods if other.kind == method.kind) is method
