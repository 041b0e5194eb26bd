"""What the chat task adds to the comparison: forgetting, reading, the judge, the answers."""

from __future__ import annotations

from tarazu.report.analysis.study_view import StudyView, get_path
from tarazu.report.render.bilingual import Bilingual, code, number, translate
from tarazu.report.render.tables import Cell, Table
from tarazu.report.sections.chat.answers import omission_note, side_by_side
from tarazu.report.sections.chat.side_effects import forgetting_sentences, reading_table
from tarazu.report.sections.common.base import ComparisonPart, Context
from tarazu.report.sections.common.cells import (
    files_of,
    number_cells,
    translate_all,
    with_interval,
)
from tarazu.report.sections.common.method_names import all_methods, code_text

FILE = "judge.json"
VERDICTS = ("win", "tie", "loss", "inconsistent", "no_verdict")


def comparison_parts(context: Context) -> list[ComparisonPart]:
    """Forgetting, reading comprehension, the judge and the answers, below the tests."""
    study, samples = context.study, side_by_side(context)
    judge, methods = study.extras["judge"], all_methods(study)
    answered = [method for method in methods if method.first.samples]
    view = {
        "judge": judge_table(study),
        "judge_against": judged_against(study),
        "judge_model": code(judge.get("model", "?")) if judge else None,
        "forgetting": forgetting_sentences(context),
        "forgetting_files": files_of(methods, "metrics.json"),
        "reading": reading_table(context),
        "samples": samples,
        "omission": omission_note(context),
        "answer_files": [method.first.file("samples.jsonl") for method in answered],
        "abilities": list(dict.fromkeys((s["ability"], s["label"]) for s in samples)),
    }
    return [ComparisonPart("chat/comparison.html", view)]


def judge_table(study: StudyView) -> Table | None:
    """What the judge model preferred; None where `tarazu judge` was not run."""
    results = get_path(study.extras["judge"], "methods", default={})
    if not results:
        return None
    rows = []
    for name, result in results.items():
        win_rate = get_path(result, "win_rate")
        low, high = get_path(result, "interval", 0), get_path(result, "interval", 1)
        rate = with_interval(number(win_rate, "percent", FILE), low, high, "percent")
        counts = number_cells([get_path(result, key) for key in VERDICTS], "count", FILE)
        rows.append([Cell(code(name), name), Cell(rate, win_rate), *counts])
    titles = [f"judge.{key}" for key in VERDICTS]
    columns = translate_all("compare.method", "judge.rate", *titles)
    caption = translate("judge.table", against=judged_against(study))
    files = [f"judge/{name}.jsonl" for name in results]
    files = [FILE, *[file for file in files if (study.path / file).exists()]]
    return Table(caption, columns, rows, files, sortable=True)


def judged_against(study: StudyView) -> Bilingual:
    """The method whose answers the judge compared with the others'."""
    name = study.extras["judge"].get("against")
    is_base = name is None or (study.base is not None and name == study.base.name)
    return translate("judge.base") if is_base else code_text(name)
