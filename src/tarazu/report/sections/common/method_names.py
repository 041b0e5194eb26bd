"""How the report names methods and metrics, and which methods a study has, the base model first."""

from __future__ import annotations

from collections.abc import Sequence

from tarazu.report.analysis.study_view import MethodView, StudyView
from tarazu.report.render.bilingual import Bilingual, code, joined, translate, translate_or


def method_name(method: MethodView) -> Bilingual:
    """The name of a method as the recipe has it; a description for the base model."""
    return translate("method.base") if method.kind == "base" else code_text(method.name)


def code_text(name: object) -> Bilingual:
    """A name as code, the same in both languages."""
    return Bilingual(code(name), code(name))


def joined_code(names: Sequence[object]) -> Bilingual:
    """`a, b and c` with each name as code."""
    return joined([code(name) for name in names])


def all_methods(study: StudyView) -> list[MethodView]:
    """The base model, if the study has it, then the trained methods in the order of the recipe."""
    return study.all_methods


def metric_name(key: str) -> Bilingual:
    """The name of a metric in a sentence; its key where the report does not know it."""
    return translate_or(f"metric.{key}", key)


def axis_title(key: str) -> Bilingual:
    """The name of a metric along an axis; its key where the report does not know it."""
    return translate_or(f"axis.{key}", key)
