"""The baselines of the captions task: scores of a human, a constant and a shuffled caption."""

from __future__ import annotations

from typing import Any

from tarazu.report.analysis.baselines import baselines
from tarazu.report.analysis.study_view import get_path
from tarazu.report.render.bilingual import data_text, translate
from tarazu.report.render.tables import Cell, Table, number_cell, text_cell
from tarazu.report.sections.common.base import Context, Section
from tarazu.report.sections.common.cells import number_cells, translate_all

BLEU_ORDERS = (1, 2, 3, 4)
OTHER_SCORES = ("cider", "rouge_l", "meteor")
OTHER_SCORE_TITLES = [f"metric.{key}" for key in OTHER_SCORES]
MAX_CAPTION_CHARS = 200


def baselines_section(context: Context) -> Section:
    """The section on the three baselines."""
    caption = get_path(baselines(context.study)[0].get("constant"), "caption")
    view = {
        "table": baseline_table(context),
        "constant": data_text(caption, MAX_CAPTION_CHARS) if caption else None,
    }
    return Section("baselines", translate("section.baselines"), "captions/baselines.html", view)


def baseline_table(context: Context) -> Table:
    """BLEU, CIDEr, ROUGE-L and METEOR of each baseline."""
    scores_of, source = baselines(context.study)
    rows = [
        [
            text_cell(translate(f"baseline.{name}")),
            *bleu_cells(scores, "bleu", source),
            *other_score_cells(scores, source),
        ]
        for name, scores in scores_of.items()
    ]
    bleu = [f"metric.bleu{n}" for n in BLEU_ORDERS]
    columns = translate_all("baseline.what", *bleu, *OTHER_SCORE_TITLES)
    return Table(translate("baseline.table"), columns, rows, [source] if source else [])


def bleu_cells(scores: Any, key: str, source: str) -> list[Cell]:
    """BLEU-1 to BLEU-4 of one set of captions.

    Args:
        scores: an entry of metrics.json's `decoding` or `baselines`.
        key: "bleu", or "bleu_no_penalty" for BLEU without brevity penalty.
    """
    return number_cells([get_path(scores, key, n - 1) for n in BLEU_ORDERS], "points", source)


def other_score_cells(scores: Any, source: str) -> list[Cell]:
    """CIDEr, ROUGE-L and METEOR of one set of captions."""
    return [number_cell(get_path(scores, key), "points", source) for key in OTHER_SCORES]
