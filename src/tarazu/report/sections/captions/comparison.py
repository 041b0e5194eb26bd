"""What the comparison of captioning models adds: BLEU with and without penalty, errors and images side by side."""

from __future__ import annotations

from collections import Counter
from functools import partial

from markupsafe import Markup

from tarazu.report.analysis.baselines import yardsticks
from tarazu.report.analysis.metrics import by_id
from tarazu.report.analysis.study_view import Arm, as_number, get_path
from tarazu.report.render import charts
from tarazu.report.render.bilingual import (
    Bilingual,
    code,
    data_text,
    has,
    joined,
    number,
    say_or,
    translate,
)
from tarazu.report.render.figures import Figure
from tarazu.report.render.images import photo
from tarazu.report.render.tables import Cell, Table, figure_cell, text_cell
from tarazu.report.sections.captions.ablation import ablation_view
from tarazu.report.sections.captions.methods import categories, pictured
from tarazu.report.sections.chat.answers import arm_name
from tarazu.report.sections.common.base import Context

SIDE_BY_SIDE = 6
ORDERS = (1, 2, 3, 4)


def captions_extras(context: Context) -> dict:
    return {
        "bleu": bleu_table(context),
        "tokenizer": tokenizer_sentence(context),
        "ablations": ablation_view(context),
        "bleu_figure": bleu_figure(context),
        "errors": errors_side_by_side(context),
        "error_findings": error_findings(context),
        "gallery": gallery(context),
    }


def bleu_table(context: Context) -> Table:
    """BLEU-1..4 of every model and decoding, with the brevity penalty and without it (as the papers have it)."""
    rows = []
    for arm in context.study.arms:
        source = arm.first.file("metrics.json")
        for how, scores in sorted(get_path(arm.first.metrics, "decoding", default={}).items()):
            cells = [figure_cell(get_path(scores, "bleu", n - 1), "points", source) for n in ORDERS]
            cells += [
                figure_cell(get_path(scores, "bleu_no_penalty", n - 1), "points", source)
                for n in ORDERS
            ]
            cells += [
                figure_cell(get_path(scores, "brevity_penalty"), "two", source),
                *[
                    figure_cell(get_path(scores, k), "points", source)
                    for k in ("cider", "rouge_l", "meteor")
                ],
            ]
            rows.append([text_cell(arm_name(arm)), text_cell(decoding(how)), *cells])
    found, source = yardsticks(context.study)
    for name, scores in found.items():
        cells = [
            figure_cell(get_path(scores, part, n - 1), "points", source)
            for part in ("bleu", "bleu_no_penalty")
            for n in ORDERS
        ]
        rows.append(
            [
                text_cell(translate(f"yardstick.{name}")),
                text_cell(translate("yardstick.is")),
                *cells,
                figure_cell(get_path(scores, "brevity_penalty"), "two", source),
                *[
                    figure_cell(get_path(scores, k), "points", source)
                    for k in ("cider", "rouge_l", "meteor")
                ],
            ]
        )
    columns = [
        translate("compare.method"),
        translate("bleu.decoding"),
        *[translate(f"measure.bleu{n}") for n in ORDERS],
        *[translate("bleu.without", n=Markup(str(n))) for n in ORDERS],
        translate("bleu.penalty"),
        translate("measure.cider"),
        translate("measure.rouge_l"),
        translate("measure.meteor"),
    ]
    return Table(
        translate("bleu.table"),
        columns,
        rows,
        [arm.first.file("metrics.json") for arm in context.study.arms],
        sortable=True,
    )


def tokenizer_sentence(context: Context) -> Bilingual:
    """The tokenizer that the scores depend on, by the name that the scorers wrote down; every name, if there are several."""
    found = [
        get_path(scores, "tokenizer")
        for arm in context.study.arms
        for run in arm.measured
        for scores in get_path(run.metrics, "decoding", default={}).values()
    ]
    names = list(dict.fromkeys(name for name in found if isinstance(name, str)))
    if not names:
        return translate("bleu.tokenizer_unknown")
    known = f"bleu.tokenizer_{names[0]}"
    what = translate(known if len(names) == 1 and has(known) else "bleu.tokenizer_other")
    return translate("bleu.tokenizer", names=joined([code(name) for name in names]), what=what)


def decoding(how: str) -> Bilingual:
    """greedy, or beams with how many."""
    return (
        translate("bleu.beam", n=number(int(how[4:]), "count"))
        if how.startswith("beam") and how[4:].isdigit()
        else say_or(f"bleu.{how}", how)
    )


def bleu_figure(context: Context) -> Figure | None:
    """BLEU-1..4 of the models (beam 3) and the yardsticks."""
    named = [
        (arm.name, get_path(arm.first.metrics, "decoding", "beam3", default={}))
        for arm in context.study.arms
    ]
    named += [
        (translate(f"yardstick.{name}"), scores)
        for name, scores in yardsticks(context.study)[0].items()
    ]
    rows = [
        (label, f"BLEU-{n}", value)
        for label, scores in named
        for n in ORDERS
        if (value := as_number(get_path(scores, "bleu", n - 1))) is not None
    ]
    if not rows:
        return None
    make = partial(charts.grouped, rows, [f"BLEU-{n}" for n in ORDERS], translate("axis.score"))
    return context.gallery.add(
        "bleu",
        translate("bleu.figure"),
        lambda language: make(language=language),
        [arm.first.file("metrics.json") for arm in context.study.arms],
    )


def errors_side_by_side(context: Context) -> Table:
    """Precision and recall of every category for every model, on the same images: a row for each model."""
    arms = [arm for arm in context.study.arms if categories(arm)]
    names = list(dict.fromkeys(name for arm in arms for name in categories(arm)))
    rows = [
        [text_cell(arm_name(arm)), *[_precision_and_recall(arm, name) for name in names]]
        for arm in arms
    ]
    columns = [translate("compare.method"), *[say_or(f"category.{name}", name) for name in names]]
    sources = [arm.first.file("metrics.json") for arm in arms]
    return Table(translate("errors.side_by_side"), columns, rows, sources, sortable=True)


def _precision_and_recall(arm: Arm, category: str) -> Cell:
    """Both in one cell; a sort goes by their harmonic mean."""
    found, source = categories(arm).get(category), arm.first.file("metrics.json")
    values = {k: number(get_path(found, k), "percent", source) for k in ("precision", "recall")}
    return Cell(translate("errors.both", **values), as_number(get_path(found, "f1")))


def _own_errors(arm: Arm) -> dict[str, dict[str, set]]:
    """{image: {"invented", "missed"}} of the images whose errors were analysed."""
    found = {}
    for key, sample in by_id(arm.first).items():
        errors = sample.get("errors")
        if isinstance(errors, dict):
            found[key] = {
                part: {str(w) for w in errors.get(part) or []}
                if isinstance(errors.get(part), list)
                else set()
                for part in ("invented", "missed")
            }
    return found


def error_findings(context: Context) -> list[Bilingual]:
    """Who makes the fewest errors, and which errors all models share, image by image."""
    errors = {arm.name: found for arm in context.study.arms if (found := _own_errors(arm))}
    shared = (
        set.intersection(*(set(found) for found in errors.values())) if len(errors) > 1 else set()
    )
    if not shared:
        return []
    sentences = []
    for part in ("invented", "missed"):
        means = {
            name: sum(len(found[i][part]) for i in shared) / len(shared)
            for name, found in errors.items()
        }
        listed = joined(
            [
                translate("errors.each", model=code(name), mean=number(value, "two"))
                for name, value in means.items()
            ]
        )
        sentences.append(
            translate(f"errors.{part}_mean", images=number(len(shared), "count"), models=listed)
        )
        common = Counter(
            word
            for i in shared
            for word in set.intersection(*(found[i][part] for found in errors.values()))
        )
        if common:
            words = joined(
                [
                    translate("errors.word_count", word=data_text(w, 40), count=number(n, "count"))
                    for w, n in common.most_common(6)
                ]
            )
            sentences.append(translate(f"errors.{part}_by_all", words=words))
    return sentences


def gallery(context: Context) -> list[dict]:
    """The same images with every model's caption."""
    arms = [arm for arm in context.study.arms if arm.measured]
    captions = {arm.name: by_id(arm.first) for arm in arms}
    ids = [
        str(s.get("id"))
        for s in (pictured(arms[0]) if arms else [])
        if all(str(s.get("id")) in found for found in captions.values())
    ]
    views = []
    for key in ids[:SIDE_BY_SIDE]:
        first = captions[arms[0].name][key]
        lines = [
            {
                "who": arm_name(arm),
                "text": data_text(captions[arm.name][key].get("beam3") or "", 300),
                "score": number(
                    get_path(captions[arm.name][key], "scores", "cider"),
                    "points",
                    arm.first.file("samples.jsonl"),
                ),
            }
            for arm in arms
        ]
        views.append(
            {
                "id": code(key),
                "photo": photo(
                    context.study.path,
                    first.get("image"),
                    str(get_path(first, "references", 0, default="")),
                ),
                "references": [
                    data_text(r, 300) for r in get_path(first, "references", default=[])[:2]
                ],
                "lines": lines,
            }
        )
    return views
