"""How the report names a method, and which methods a study has, the base model first."""

from __future__ import annotations

from tarazu.report.analysis.study_view import MethodView, StudyView
from tarazu.report.render.bilingual import Bilingual, code, translate


def method_name(method: MethodView) -> Bilingual:
    return (
        translate("method.base")
        if method.kind == "base"
        else Bilingual(code(method.name), code(method.name))
    )


def all_methods(study: StudyView) -> list[MethodView]:
    return ([study.base] if study.base else []) + study.methods
