"""What every section is given, and what it hands to its template."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tarazu.report.comparing import Comparison
from tarazu.report.explain import Explanation
from tarazu.report.figures import Gallery
from tarazu.report.reading import StudyView
from tarazu.report.text import Both
from tarazu.report.verdict import Verdict


@dataclass(frozen=True)
class Context:
    """The study and what was computed from it once."""

    study: StudyView
    comparison: Comparison
    verdict: Verdict
    gallery: Gallery
    room: int = 350_000  # characters of answers that the page may show in all


@dataclass
class Section:
    """A section: its anchor, its title, its template, and what the template shows."""

    anchor: str
    title: Both
    template: str
    view: dict[str, Any]
    explanations: list[Explanation] = field(default_factory=list)
