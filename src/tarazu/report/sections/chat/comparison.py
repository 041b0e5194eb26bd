"""What the chat task adds to the comparison: forgetting, reading comprehension, the judge, and answers side by side."""

from __future__ import annotations

from tarazu.report.analysis.study_view import StudyView, get_path
from tarazu.report.render.bilingual import Bilingual, code, number, small_note, spaced, translate
from tarazu.report.render.tables import Cell, Table, number_cell
from tarazu.report.sections.chat.answers import omission_note, side_by_side
from tarazu.report.sections.chat.side_effects import forgetting_sentences, reading_table
from tarazu.report.sections.common.base import ComparisonPart, Context
from tarazu.report.sections.common.method_names import all_methods


def comparison_parts(context: Context) -> list[ComparisonPart]:
    """Forgetting, reading comprehension, the judge's preferences and the answers, below the tests."""
    study, samples = context.study, side_by_side(context)
    judge, methods = study.extras["judge"], all_methods(context.study)
    view = {
        "judge": judge_table(study),
        "judge_against": judged_against(study),
        "judge_model": code(judge.get("model", "?")) if judge else None,
        "forgetting": forgetting_sentences(context),
        "forgetting_files": [
            run.file("metrics.json") for method in methods for run in method.measured
        ],
        "reading": reading_table(context),
        "samples": samples,
        "part": omission_note(context),
        "answer_files": [
            method.first.file("samples.jsonl") for method in methods if method.first.samples
        ],
        "abilities": list(dict.fromkeys((s["ability"], s["label"]) for s in samples)),
    }
    return [ComparisonPart("chat/comparison.html", view)]


def judge_table(study: StudyView) -> Table | None:
    """What a judge model preferred, where `tarazu judge` was run."""
    found = study.extras["judge"].get("methods")
    if not isinstance(found, dict) or not found:
        return None
    rows = []
    for name, one in found.items():
        low, high = get_path(one, "interval", 0), get_path(one, "interval", 1)
        rate = spaced(
            number(get_path(one, "win_rate"), "percent", "judge.json"),
            small_note(
                translate(
                    "compare.interval", low=number(low, "percent"), high=number(high, "percent")
                )
            ),
        )
        rows.append(
            [
                Cell(code(name), name),
                Cell(rate, get_path(one, "win_rate")),
                *[
                    number_cell(get_path(one, k), "count", "judge.json")
                    for k in ("win", "tie", "loss", "inconsistent", "no_verdict")
                ],
            ]
        )
    columns = [
        translate("compare.method"),
        translate("judge.rate"),
        *[translate(f"judge.{k}") for k in ("win", "tie", "loss", "inconsistent", "no_verdict")],
    ]
    return Table(
        translate("judge.table", against=judged_against(study)),
        columns,
        rows,
        [
            "judge.json",
            *[file for name in found if (study.path / (file := f"judge/{name}.jsonl")).exists()],
        ],
        sortable=True,
    )


def judged_against(study: StudyView) -> Bilingual:
    """The method whose answers stood beside the others' before the judge."""
    name = study.extras["judge"].get("against")
    return (
        translate("judge.base")
        if name is None or (study.base and name == study.base.name)
        else Bilingual(code(name), code(name))
    )
