"""The sentence that says what a chat study compared."""

from __future__ import annotations

from tarazu.report.analysis.study_view import get_path
from tarazu.report.render.bilingual import Bilingual, code, joined, number, translate
from tarazu.report.sections.common.base import Context
from tarazu.report.sections.common.data_tables import sources_named


def compared(context: Context) -> Bilingual:
    """Which methods were trained, on which model and on how many rows."""
    study = context.study
    rows = get_path(study.data, "splits", "train", "rows")
    return translate(
        "overview.chat",
        methods=joined([code(method.name) for method in study.methods]),
        model=code(study.model.get("name") or study.settings.get("model") or "?"),
        rows=number(rows, "count", "data.json"),
        source=sources_named(study.data),
    )
