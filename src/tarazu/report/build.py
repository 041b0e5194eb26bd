"""Build the report of a run folder: report.html, results.csv and figures/. Never imports torch."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import replace
from pathlib import Path

from tarazu import tasks
from tarazu.report.analysis.comparison import compare
from tarazu.report.analysis.metrics import TaskMetrics
from tarazu.report.analysis.recommendation import recommend
from tarazu.report.analysis.study_view import StudyView, dicts_in, read_study
from tarazu.report.assignment import items_of, numbers_by_section
from tarazu.report.render.bilingual import translate
from tarazu.report.render.figures import FigureWriter
from tarazu.report.render.page import compact, render
from tarazu.report.sections.common.base import Context, Section, TaskReport
from tarazu.report.sections.common.general import general_report
from tarazu.report.sections.comparison import comparison_section
from tarazu.report.sections.overview import overview_section
from tarazu.report.sections.recommendation import recommendation_section
from tarazu.report.sections.reproduction import reproduction_section
from tarazu.storage.atomic_io import write_atomic

MAX_PAGE_BYTES = 2_980_000
MIN_ANSWER_CHARS = 20_000
_PERSIAN = re.compile("[\u0600-\u06ff]")
_LATIN = re.compile("[A-Za-z]")


def build(folder: Path) -> Path:
    """Write the report of a study, also of one that failed or was stopped.

    Args:
        folder: the run folder. report.html, results.csv and figures/ are written into it.

    Returns:
        The path of report.html.

    Raises:
        UserError: there is no such folder.
    """
    study = read_study(Path(folder))
    task = report_of(study)
    comparison = compare(study, task.metrics)
    verdict = recommend(study, comparison)
    figures = FigureWriter(study.path / "figures")
    page = _fit_to_size(Context(study, task, comparison, verdict, figures))
    csv_text = _csv(study, task.metrics)
    write_atomic(study.path / "results.csv", csv_text.encode("utf-8-sig", "replace"))
    path = study.path / "report.html"
    write_atomic(path, page)
    return path


def report_of(study: StudyView) -> TaskReport:
    """The report of the study's task; the general one where the task has none or is unknown."""
    return tasks.report_of(study.task) or general_report(study)


def _fit_to_size(context: Context) -> bytes:
    """Show as much of the answers as fits into `MAX_PAGE_BYTES`.

    The budget of characters is divided by three until the page fits. Two steps of bisection between
    the last budget that fitted and the last one that did not then win back some of the answers.
    """
    page, too_many = _page(context), 0
    while len(page) > MAX_PAGE_BYTES and context.max_answer_chars > MIN_ANSWER_CHARS:
        too_many = context.max_answer_chars
        context = replace(context, max_answer_chars=too_many // 3)
        page = _page(context)
    for _ in range(2 if too_many else 0):
        middle = replace(context, max_answer_chars=(context.max_answer_chars + too_many) // 2)
        middle_page = _page(middle)
        if len(middle_page) > MAX_PAGE_BYTES:
            too_many = middle.max_answer_chars
        else:
            context, page = middle, middle_page
    return page


def _page(context: Context) -> bytes:
    """The page as UTF-8."""
    sections = _sections(context)
    items = items_of(context.study, context.task.assignment)
    text = render(
        "report.html",
        title=translate(context.task.title),
        lead=translate(context.task.lead),
        language=language_of(context.study, context.task),
        sections=sections,
        items=items,
        section_items=numbers_by_section(items, [section.anchor for section in sections]),
    )
    return compact(text).encode("utf-8")


def _sections(context: Context) -> list[Section]:
    """The sections in the order of the page."""
    makers = (
        overview_section,
        *context.task.sections,
        comparison_section,
        recommendation_section,
        reproduction_section,
    )
    return [make(context) for make in makers]


def language_of(study: StudyView, task: TaskReport) -> str:
    """The language that the page opens in: the recipe's, else that of the data's examples."""
    if study.settings.get("language") in ("fa", "en"):
        return study.settings["language"]
    examples = dicts_in(study.data.get("examples"))
    text = " ".join(text for example in examples for text in task.example_texts(example))
    return "fa" if len(_PERSIAN.findall(text)) > len(_LATIN.findall(text)) else "en"


def _csv(study: StudyView, metrics: TaskMetrics) -> str:
    """One row for each method and seed with every metric, unrounded."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(["method", "kind", "seed", "status", *metrics.by_key])
    for method in study.all_methods:
        for run in method.runs:
            values = [metric.of(run) for metric in metrics.by_key.values()]
            cells = ["" if value is None else value for value in values]
            writer.writerow([run.name, run.kind, run.seed, run.status, *cells])
    return out.getvalue()
