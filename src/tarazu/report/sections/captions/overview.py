"""The sentence that says what a captions study compared."""

from __future__ import annotations

from tarazu.report.analysis.study_view import get_path
from tarazu.report.render.bilingual import Bilingual, code, joined, number, translate
from tarazu.report.sections.common.base import Context
from tarazu.report.sections.common.data_tables import sources_named


def compared(context: Context) -> Bilingual:
    """Which models were trained, with which image encoder and on how many images."""
    study = context.study
    encoder = get_path(study.model, "encoder", "name") or study.settings.get("encoder")
    images = get_path(study.data, "splits", "train", "images")
    return translate(
        "overview.captions",
        methods=joined([code(method.name) for method in study.methods]),
        model=code(encoder or "?"),
        images=number(images, "count", "data.json"),
        source=sources_named(study.data),
    )
