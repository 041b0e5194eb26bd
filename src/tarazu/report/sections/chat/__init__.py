"""The report of the chat task."""

from tarazu.report.analysis.study_view import dicts_in
from tarazu.report.sections.chat.assignment import ASSIGNMENT
from tarazu.report.sections.chat.before_training import before_training_section
from tarazu.report.sections.chat.comparison import comparison_parts
from tarazu.report.sections.chat.data import data_section
from tarazu.report.sections.chat.methods import methods_section
from tarazu.report.sections.chat.metrics import METRICS
from tarazu.report.sections.chat.model import model_section
from tarazu.report.sections.chat.overview import compared
from tarazu.report.sections.chat.side_effects import side_effects
from tarazu.report.sections.common.base import TaskReport

REPORT = TaskReport(
    metrics=METRICS,
    sections=(data_section, model_section, before_training_section, methods_section),
    overview=compared,
    title="page.title_chat",
    comparison_parts=comparison_parts,
    comparison_explanations=("fairness", "memory-and-time", "forgetting"),
    side_effects=side_effects,
    example_texts=lambda example: [
        str(turn.get("text")) for turn in dicts_in(example.get("turns"))
    ],
    assignment=ASSIGNMENT,
)
