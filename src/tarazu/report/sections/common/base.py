"""What a task tells the report about itself, and what sections take and give."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tarazu.report.analysis.comparison import Comparison
from tarazu.report.analysis.metrics import TaskMetrics
from tarazu.report.analysis.recommendation import Verdict
from tarazu.report.analysis.study_view import MethodView, StudyView
from tarazu.report.assignment import AssignmentItem
from tarazu.report.render.bilingual import Bilingual
from tarazu.report.render.explanations import Explanation
from tarazu.report.render.figures import FigureWriter

TOKENS, EPOCHS = "tokens", "epoch"


@dataclass(frozen=True)
class Context:
    """The study and what was computed from it once."""

    study: StudyView
    task: TaskReport
    comparison: Comparison
    verdict: Verdict
    figures: FigureWriter
    max_answer_chars: int = 350_000  # characters of all answers that the page may show

    @property
    def metrics(self) -> TaskMetrics:
        """The metrics of the study's task."""
        return self.task.metrics


@dataclass
class Section:
    """A section of the page; the template shows `view`, and the explanations stand below it."""

    anchor: str
    title: Bilingual
    template: str
    view: dict[str, Any]
    explanations: list[Explanation] = field(default_factory=list)


@dataclass(frozen=True)
class ComparisonPart:
    """A part that a task adds to the comparison: a template and what it shows as `view`.

    Args:
        after_quality: whether it stands below the table of quality; else below the tests.
    """

    template: str
    view: dict[str, Any]
    after_quality: bool = False


@dataclass(frozen=True)
class ProsAndCons:
    """Sentences for and against a method."""

    pros: list[Bilingual] = field(default_factory=list)
    cons: list[Bilingual] = field(default_factory=list)


@dataclass(frozen=True)
class TaskReport:
    """All that the report knows of one task. `tarazu.tasks` names the object of each task.

    Args:
        metrics: what is compared; the first quality metric decides.
        sections: makers of the sections between overview and comparison.
        overview: the sentence that says which methods were compared, on which model and data.
        title: string key of the page's title.
        lead: string key of the line below the title.
        curve_axis: the field of events.jsonl along which losses are drawn: "tokens" or "epoch".
        comparison_parts: parts that the task adds to the comparison.
        comparison_explanations: explanations below the comparison.
        side_effects: what tuning changed besides quality and cost, for the pros and cons.
        example_texts: the texts of one example of data.json; they decide the page's language where
            the recipe does not.
        assignment: the items of the assignment and where the report answers each.
    """

    metrics: TaskMetrics
    sections: tuple[Callable[[Context], Section], ...]
    overview: Callable[[Context], Bilingual]
    title: str = "page.title"
    lead: str = "page.lead"
    curve_axis: str = TOKENS
    comparison_parts: Callable[[Context], list[ComparisonPart]] = lambda context: []
    comparison_explanations: tuple[str, ...] = ("fairness", "memory-and-time")
    side_effects: Callable[[Context, MethodView], ProsAndCons] = lambda context, method: (
        ProsAndCons()
    )
    example_texts: Callable[[dict], list[str]] = lambda example: []
    assignment: Mapping[str, AssignmentItem] = field(default_factory=dict)
