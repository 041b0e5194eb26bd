"""What every section is given, and what it hands to its template."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tarazu.report.analysis.comparison import Comparison
from tarazu.report.analysis.recommendation import Verdict
from tarazu.report.analysis.study_view import StudyView
from tarazu.report.render.bilingual import Bilingual
from tarazu.report.render.explanations import Explanation
from tarazu.report.render.figures import FigureWriter


@dataclass(frozen=True)
class Context:
    """The study and what was computed from it once."""

    study: StudyView
    comparison: Comparison
    verdict: Verdict
    figures: FigureWriter
    max_answer_chars: int = 350_000  # characters of answers that the page may show in all


@dataclass
class Section:
    """A section: its anchor, its title, its template, and what the template shows."""

    anchor: str
    title: Bilingual
    template: str
    view: dict[str, Any]
    explanations: list[Explanation] = field(default_factory=list)
