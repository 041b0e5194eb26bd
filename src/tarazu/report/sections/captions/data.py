"""Section 2 for captions: images with their captions, the vocabulary, the split, and the figures of C1.7."""

from __future__ import annotations

from functools import partial
from pathlib import PurePosixPath

from tarazu.report.analysis.study_view import as_number, dicts_in, get_path
from tarazu.report.render import charts
from tarazu.report.render.bilingual import code, data_text, number, translate, translate_or
from tarazu.report.render.explanations import explain
from tarazu.report.render.figures import Figure
from tarazu.report.render.images import photo
from tarazu.report.render.known_messages import translate_known
from tarazu.report.render.tables import Cell, Table, code_cell, number_cell, pairs_table, text_cell
from tarazu.report.sections.common.base import Context, Section
from tarazu.report.sections.common.data_tables import FILE, problems_table, splits_table

MOST_POINTS = 700


def data_section(context: Context) -> Section:
    data = context.study.data
    view = {
        "note": translate_known(data["note"]) if data.get("note") else None,
        "facts": _facts(data),
        "examples": [_example(context, e) for e in dicts_in(data.get("examples"))[:5]],
        "vocabulary": _vocabulary(data),
        "specials": _specials(data),
        "splits": splits_table(data, ["images", "captions"]),
        "lengths": _lengths(data),
        "duplicates": _duplicates(data),
        "problems": problems_table(data),
        "figures": [
            f
            for f in (_scatter(context), _histogram(context), _top_words(context), _sizes(context))
            if f is not None
        ],
        "file": FILE,
    }
    return Section(
        "data",
        translate("section.data"),
        "captions/data.html",
        view,
        explain("flickr8k", "special-tokens"),
    )


def _facts(data: dict) -> Table:
    structure = data.get("structure") if isinstance(data.get("structure"), dict) else {}
    pairs = [
        (translate("data.source"), code_cell(data["source"]) if data.get("source") else None),
        (translate("data.hash"), code_cell(data["sha256"]) if data.get("sha256") else None),
        (
            translate("caption_data.layout"),
            Cell(translate_or(f"file_layout.{data.get('layout')}", data.get("layout")))
            if data.get("layout")
            else None,
        ),
        (
            translate("caption_data.split_by"),
            text_cell(translate_known(data["split_by"])) if data.get("split_by") else None,
        ),
        (translate("data.images"), number_cell(structure.get("images"), "count", FILE)),
        (translate("data.captions"), number_cell(structure.get("captions"), "count", FILE)),
    ]
    return pairs_table(
        translate("data.facts"),
        pairs,
        [translate("common.what"), translate("common.value")],
        [FILE],
    )


def _example(context: Context, example: dict) -> dict:
    """One image with a raw caption, its words, and its numbers with the padding that follows."""
    captions = example.get("captions") if isinstance(example.get("captions"), list) else []
    processed = example.get("processed") if isinstance(example.get("processed"), list) else []
    ids = example.get("ids") if isinstance(example.get("ids"), list) else []
    first = ids[0] if ids and isinstance(ids[0], list) else ids
    return {
        "photo": photo(
            context.study.path, example.get("image"), str(captions[0]) if captions else ""
        ),
        "name": code(PurePosixPath(str(example.get("id") or example.get("image") or "?")).name),
        "captions": [data_text(c, 300) for c in captions[:5]],
        "processed": [
            data_text(" ".join(map(str, words)), 300)
            if isinstance(words, list)
            else data_text(words, 300)
            for words in processed[:5]
        ],
        "ids": code(" ".join(str(i) for i in first[:60])) if first else None,
    }


def _vocabulary(data: dict) -> Table:
    structure = data.get("structure") if isinstance(data.get("structure"), dict) else {}
    pairs = [
        (translate(f"caption_data.{key}"), number_cell(structure.get(key), "count", FILE))
        for key in ("vocabulary", "min_count", "max_length")
    ]
    if structure.get("truncated_captions") is not None:
        pairs.append(
            (
                translate("caption_data.truncated_captions"),
                number_cell(structure["truncated_captions"], "count", FILE),
            )
        )
    pairs.append(
        (
            translate("caption_data.unknown"),
            number_cell(structure.get("unknown_test_fraction"), "percent", FILE),
        )
    )
    return pairs_table(
        translate("caption_data.vocabulary_title"),
        pairs,
        [translate("common.what"), translate("common.value")],
        [FILE, "vocabulary.json"],
    )


def _specials(data: dict) -> Table:
    """The special tokens with their ids: they stand first in the vocabulary, in this order."""
    names = (
        data.get("vocabulary_specials") if isinstance(data.get("vocabulary_specials"), list) else []
    )
    rows = [
        [
            code_cell(name),
            number_cell(i, "count"),
            text_cell(translate_or(f"special_token.{str(name).strip('<>')}", "")),
        ]
        for i, name in enumerate(names)
    ]
    return Table(
        translate("caption_data.specials"),
        [
            translate("caption_data.token"),
            translate("caption_data.id"),
            translate("caption_data.use"),
        ],
        rows,
        ["vocabulary.json"],
    )


def _lengths(data: dict) -> Table:
    columns = ("mean", "p50", "p90", "p99", "max")
    rows = []
    for split in ("train", "validation", "test"):
        values = get_path(data, "structure", "lengths_per_split", split, default={})
        if values:
            rows.append(
                [
                    text_cell(translate(f"split.{split}")),
                    *[
                        number_cell(get_path(values, c), "points" if c == "mean" else "count", FILE)
                        for c in columns
                    ],
                ]
            )
    return Table(
        translate("caption_data.lengths"),
        [translate("data.split"), *[translate(f"length.{c}") for c in columns]],
        rows,
        [FILE],
    )


def _duplicates(data: dict) -> Table:
    rows = [
        [
            code_cell(d.get("a", "")),
            code_cell(d.get("b", "")),
            text_cell(translate_or(f"duplicate.{d.get('kind')}", d.get("kind"))),
        ]
        for d in dicts_in(data.get("duplicates"))[:20]
    ]
    return Table(
        translate("caption_data.duplicates"),
        [
            translate("caption_data.image"),
            translate("caption_data.image"),
            translate("caption_data.copy"),
        ],
        rows,
        [FILE],
    )


def _scatter(context: Context) -> Figure | None:
    """The scatter plot of caption lengths: one point a caption where the data has points, else one point a length."""
    points = [
        p
        for p in get_path(context.study.data, "structure", "length_points", default=[])
        if isinstance(p, list) and len(p) == 2
    ]
    if points:
        points = points[:: -(-len(points) // MOST_POINTS)]
        x, y = [p[0] for p in points], [p[1] for p in points]
        make = partial(
            charts.dots,
            [charts.Series(translate("data.captions"), x, y)],
            translate("axis.image"),
            translate("length.words"),
        )
        caption = translate("caption_data.scatter", n=number(len(points), "count"))
        return context.figures.add(
            "caption-lengths-scatter",
            caption,
            lambda language: make(language=language, size=14),
            [FILE],
        )
    series = []
    for split in ("train", "validation", "test"):
        edges = get_path(
            context.study.data,
            "structure",
            "lengths_per_split",
            split,
            "histogram",
            "edges",
            default=[],
        )
        counts = get_path(
            context.study.data,
            "structure",
            "lengths_per_split",
            split,
            "histogram",
            "counts",
            default=[],
        )
        if counts:
            series.append(charts.Series(translate(f"split.{split}"), edges[: len(counts)], counts))
    if not series:
        return None
    make = partial(charts.dots, series, translate("length.words"), translate("data.captions"))
    return context.figures.add(
        "caption-lengths-scatter",
        translate("caption_data.scatter_counts"),
        lambda language: make(language=language),
        [FILE],
    )


def _histogram(context: Context) -> Figure | None:
    edges = get_path(context.study.data, "structure", "lengths", "histogram", "edges", default=[])
    counts = get_path(context.study.data, "structure", "lengths", "histogram", "counts", default=[])
    if len(edges) < 2 or not counts:
        return None
    make = partial(
        charts.histogram, edges, counts, translate("length.words"), translate("data.captions")
    )
    return context.figures.add(
        "caption-lengths",
        translate("data.lengths_of", what=translate("length.words")),
        lambda language: make(language=language, width=420),
        [FILE],
    )


def _top_words(context: Context) -> Figure | None:
    words = [
        w
        for w in get_path(context.study.data, "structure", "top_words", default=[])
        if isinstance(w, list) and len(w) == 2 and as_number(w[1]) is not None
    ][:20]
    if not words:
        return None
    make = partial(
        charts.bars,
        [str(w)[:40] for w, _ in words],
        [n for _, n in words],
        translate("axis.occurrences"),
        format=",d",
    )
    return context.figures.add(
        "top-words",
        translate("caption_data.top_words", n=number(len(words), "count")),
        lambda language: make(language=language),
        [FILE],
    )


def _sizes(context: Context) -> Figure | None:
    """How the vocabulary shrinks with the minimum count: why this one was chosen."""
    sizes = get_path(context.study.data, "structure", "size_by_min_count", default={})
    pairs = (
        [(f"≥ {n}", size) for n, size in sizes.items() if as_number(size) is not None]
        if isinstance(sizes, dict)
        else []
    )
    if not pairs:
        return None
    make = partial(
        charts.bars,
        [p[0] for p in pairs],
        [p[1] for p in pairs],
        translate("axis.vocabulary"),
        format=",d",
    )
    return context.figures.add(
        "vocabulary-size",
        translate("caption_data.sizes"),
        lambda language: make(language=language),
        [FILE],
    )
