"""How the report names methods and metrics, and which methods a study has, the base model first."""

from __future__ import annotations

from tarazu.report.analysis.study_view import MethodView, StudyView
from tarazu.report.render.bilingual import Bilingual, code, translate, translate_or


def method_name(method: MethodView) -> Bilingual:
    return (
        translate("method.base")
        if method.kind == "base"
        else Bilingual(code(method.name), code(method.name))
    )


def all_methods(study: StudyView) -> list[MethodView]:
    return ([study.base] if study.base else []) + study.methods


def metric_name(key: str) -> Bilingual:
    """The name of a metric in a sentence; its key where the report does not know it."""
    return translate_or(f"metric.{key}", key)


def axis_title(key: str) -> Bilingual:
    """The name of a metric along an axis; its key where the report does not know it."""
    return translate_or(f"axis.{key}", key)
