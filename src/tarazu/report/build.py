"""`tarazu report DIR`: from a run folder to report.html, results.csv and figures/. Never imports torch."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import replace
from pathlib import Path

from tarazu.report.analysis.comparison import compare
from tarazu.report.analysis.metrics import all_metrics
from tarazu.report.analysis.recommendation import recommend
from tarazu.report.analysis.study_view import StudyView, dicts_in, get_path, read_study
from tarazu.report.assignment import items_of, numbers_by_section
from tarazu.report.render.bilingual import translate
from tarazu.report.render.figures import FigureWriter
from tarazu.report.render.page import compact, render
from tarazu.report.sections.common.base import Context, Section
from tarazu.storage.atomic_io import write_atomic

MAX_PAGE_BYTES = 2_980_000
MIN_ANSWER_CHARS = 20_000
_PERSIAN = re.compile("[\u0600-\u06ff]")
_LATIN = re.compile("[A-Za-z]")


def build(folder: Path) -> Path:
    """Writes the report of the study in `folder` and returns its path. A failed study gets one that says so."""
    study = read_study(Path(folder))
    comparison = compare(study)
    context = Context(
        study, comparison, recommend(study, comparison), FigureWriter(study.path / "figures")
    )
    page = _fit_to_size(context)
    write_atomic(study.path / "results.csv", _csv(study).encode("utf-8-sig", "replace"))
    path = study.path / "report.html"
    write_atomic(path, page)
    return path


def _fit_to_size(context: Context) -> bytes:
    """The page with about as much of the answers as fits: a third until it fits, then twice half of what lies between."""
    page, above = _page(context), 0
    while len(page) > MAX_PAGE_BYTES and context.max_answer_chars > MIN_ANSWER_CHARS:
        above = context.max_answer_chars
        context = replace(context, max_answer_chars=above // 3)
        page = _page(context)
    for _ in range(2 if above else 0):
        between = replace(context, max_answer_chars=(context.max_answer_chars + above) // 2)
        tried = _page(between)
        if len(tried) > MAX_PAGE_BYTES:
            above = between.max_answer_chars
        else:
            context, page = between, tried
    return page


def _page(context: Context) -> bytes:
    study, sections, items = context.study, _sections(context), items_of(context.study)
    task = "captions" if study.task == "captions" else "chat"
    text = render(
        "report.html",
        title=translate(f"page.title_{task}"),
        language=language_of(study),
        sections=sections,
        items=items,
        section_items=numbers_by_section(items, [s.anchor for s in sections]),
    )
    return compact(text).encode("utf-8")


def _sections(context: Context) -> list[Section]:
    from tarazu.report.sections.comparison import comparison_section
    from tarazu.report.sections.overview import overview_section
    from tarazu.report.sections.recommendation import recommendation_section
    from tarazu.report.sections.reproduction import reproduction_section

    if context.study.task == "captions":
        from tarazu.report.sections import captions as task
    else:
        from tarazu.report.sections import chat as task
    middle = [make(context) for make in task.SECTIONS]
    return [
        overview_section(context),
        *middle,
        comparison_section(context),
        recommendation_section(context),
        reproduction_section(context),
    ]


def language_of(study: StudyView) -> str:
    """The language that the page opens in: the recipe's, else Persian where the data is Persian."""
    if study.settings.get("language") in ("fa", "en"):
        return study.settings["language"]
    texts = [
        str(turn.get("text"))
        for example in dicts_in(study.data.get("examples"))
        for turn in dicts_in(example.get("turns"))
    ]
    texts += [
        str(c)
        for example in dicts_in(study.data.get("examples"))
        for c in get_path(example, "captions", default=[])
    ]
    text = " ".join(texts)
    return "fa" if len(_PERSIAN.findall(text)) > len(_LATIN.findall(text)) else "en"


def _csv(study: StudyView) -> str:
    """One row per method and seed, every figure as it was measured."""
    known = all_metrics(study.task)
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(["method", "kind", "seed", "status", *known])
    for method in ([study.base] if study.base else []) + study.methods:
        for run in method.runs:
            values = [metric.of(run) for metric in known.values()]
            writer.writerow(
                [
                    run.name,
                    run.kind,
                    run.seed,
                    run.status,
                    *["" if v is None else v for v in values],
                ]
            )
    return out.getvalue()
