"""The report of the captions task."""

from tarazu.report.analysis.study_view import get_path
from tarazu.report.sections.captions.assignment import ASSIGNMENT
from tarazu.report.sections.captions.baselines import baselines_section
from tarazu.report.sections.captions.comparison import comparison_parts
from tarazu.report.sections.captions.data import data_section
from tarazu.report.sections.captions.methods import methods_section
from tarazu.report.sections.captions.metrics import METRICS
from tarazu.report.sections.captions.model import model_section
from tarazu.report.sections.captions.overview import compared
from tarazu.report.sections.common.base import EPOCHS, TaskReport

REPORT = TaskReport(
    metrics=METRICS,
    sections=(data_section, model_section, baselines_section, methods_section),
    overview=compared,
    title="page.title_captions",
    curve_axis=EPOCHS,
    comparison_parts=comparison_parts,
    comparison_explanations=("bleu", "caption-metrics", "fairness", "memory-and-time"),
    example_texts=lambda example: [str(text) for text in get_path(example, "captions", default=[])],
    assignment=ASSIGNMENT,
)
