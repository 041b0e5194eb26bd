"""The data section of the captions task: examples, vocabulary, splits, duplicates, charts."""

from __future__ import annotations

from functools import partial
from pathlib import PurePosixPath
from typing import Any

from tarazu.report.analysis.study_view import as_number, dicts_in, get_path
from tarazu.report.render import charts
from tarazu.report.render.bilingual import (
    Bilingual,
    code,
    data_text,
    number,
    translate,
    translate_or,
)
from tarazu.report.render.explanations import explain
from tarazu.report.render.figures import Figure
from tarazu.report.render.images import photo
from tarazu.report.render.known_messages import translate_known
from tarazu.report.render.tables import Table, code_cell, number_cell, text_cell
from tarazu.report.sections.common.base import Context, Section
from tarazu.report.sections.common.cells import code_or_none, facts_table, translate_all
from tarazu.report.sections.common.data_tables import (
    FILE,
    SPLITS,
    lengths_table,
    problems_table,
    splits_table,
)

MAX_EXAMPLES, MAX_CAPTIONS, MAX_IDS = 5, 5, 60
MAX_CAPTION_CHARS, MAX_WORD_CHARS = 300, 40
MAX_DUPLICATES, MAX_TOP_WORDS = 20, 20
MAX_POINTS = 700  # of the scatter plot


def data_section(context: Context) -> Section:
    """The section on the data of a captions study."""
    data = context.study.data
    lengths = get_path(data, "structure", "lengths_per_split", default={})
    figures = (_scatter(context), _histogram(context), _top_words(context), _sizes(context))
    view = {
        "note": translate_known(data["note"]) if data.get("note") else None,
        "facts": _facts(data),
        "examples": [_example(context, e) for e in dicts_in(data.get("examples"))[:MAX_EXAMPLES]],
        "vocabulary": _vocabulary(data),
        "special_tokens": _special_tokens(data),
        "splits": splits_table(data, ["images", "captions"]),
        "lengths": lengths_table(
            "caption_data.lengths",
            "data.split",
            [(f"split.{split}", lengths.get(split)) for split in SPLITS],
        ),
        "duplicates": _duplicates(data),
        "problems": problems_table(data),
        "figures": [figure for figure in figures if figure is not None],
        "file": FILE,
    }
    title, explanations = translate("section.data"), explain("flickr8k", "special-tokens")
    return Section("data", title, "captions/data.html", view, explanations)


def _facts(data: dict) -> Table:
    """Source, hash, file layout, splits and counts."""
    structure = get_path(data, "structure", default={})
    layout, split_by = data.get("layout"), data.get("split_by")
    facts = [
        ("data.source", code_or_none(data.get("source"))),
        ("data.hash", code_or_none(data.get("sha256"))),
        ("caption_data.layout", translate_or(f"file_layout.{layout}", layout) if layout else None),
        ("caption_data.split_by", translate_known(split_by) if split_by else None),
        ("data.images", number_cell(structure.get("images"), "count", FILE)),
        ("data.captions", number_cell(structure.get("captions"), "count", FILE)),
    ]
    return facts_table("data.facts", facts, FILE)


def _example(context: Context, example: dict) -> dict:
    """One image with its raw and processed captions, and the padded ids of the first one."""
    captions, processed, ids = (
        get_path(example, key, default=[]) for key in ("captions", "processed", "ids")
    )
    first_ids = ids[0] if ids and isinstance(ids[0], list) else ids
    name = str(example.get("id") or example.get("image") or "?")
    alt = str(captions[0]) if captions else ""
    return {
        "photo": photo(context.study.path, example.get("image"), alt),
        "name": code(PurePosixPath(name).name),
        "captions": [data_text(text, MAX_CAPTION_CHARS) for text in captions[:MAX_CAPTIONS]],
        "processed": [
            data_text(_processed_text(words), MAX_CAPTION_CHARS)
            for words in processed[:MAX_CAPTIONS]
        ],
        "ids": code(" ".join(map(str, first_ids[:MAX_IDS]))) if first_ids else None,
    }


def _processed_text(words: Any) -> Any:
    """The words of a processed caption as one text."""
    return " ".join(map(str, words)) if isinstance(words, list) else words


def _vocabulary(data: dict) -> Table:
    """Size of the vocabulary, length of the captions, and what they leave out."""
    structure = get_path(data, "structure", default={})
    keys = ["vocabulary", "min_count", "max_length"]
    if structure.get("truncated_captions") is not None:
        keys.append("truncated_captions")
    facts = [
        (f"caption_data.{key}", number_cell(structure.get(key), "count", FILE)) for key in keys
    ]
    unknown = number_cell(structure.get("unknown_test_fraction"), "percent", FILE)
    facts.append(("caption_data.unknown", unknown))
    return facts_table("caption_data.vocabulary_title", facts, FILE, "vocabulary.json")


def _special_tokens(data: dict) -> Table:
    """The special tokens, the first ones of the vocabulary: their position is their id."""
    rows = [
        [
            code_cell(name),
            number_cell(i, "count"),
            text_cell(translate_or(f"special_token.{str(name).strip('<>')}", "")),
        ]
        for i, name in enumerate(get_path(data, "vocabulary_specials", default=[]))
    ]
    columns = translate_all("caption_data.token", "caption_data.id", "caption_data.use")
    return Table(translate("caption_data.special_tokens"), columns, rows, ["vocabulary.json"])


def _duplicates(data: dict) -> Table:
    """Pairs of equal or similar images."""
    rows = [
        [
            code_cell(pair.get("a", "")),
            code_cell(pair.get("b", "")),
            text_cell(translate_or(f"duplicate.{pair.get('kind')}", pair.get("kind"))),
        ]
        for pair in dicts_in(data.get("duplicates"))[:MAX_DUPLICATES]
    ]
    columns = translate_all("caption_data.image", "caption_data.image", "caption_data.copy")
    return Table(translate("caption_data.duplicates"), columns, rows, [FILE])


def _scatter(context: Context) -> Figure | None:
    """Caption lengths: a point for each caption, else for each length and split."""
    points = get_path(context.study.data, "structure", "length_points", default=[])
    points = [point for point in points if isinstance(point, list) and len(point) == 2]
    if points:
        points = points[:: -(-len(points) // MAX_POINTS)]
        x, y = [point[0] for point in points], [point[1] for point in points]
        series = [charts.Series(translate("data.captions"), x, y)]
        titles = translate_all("axis.image", "length.words")
        caption = translate("caption_data.scatter", n=number(len(points), "count"))
        make = partial(charts.dots, series, *titles, size=14)
    else:
        series = _length_series(context)
        titles = translate_all("length.words", "data.captions")
        caption = translate("caption_data.scatter_counts")
        make = partial(charts.dots, series, *titles)
    return context.figures.add("caption-lengths-scatter", caption, make, [FILE]) if series else None


def _length_series(context: Context) -> list[charts.Series]:
    """The number of captions of each length, one series for each split."""
    lengths = get_path(context.study.data, "structure", "lengths_per_split", default={})
    series = []
    for split in SPLITS:
        edges = get_path(lengths, split, "histogram", "edges", default=[])
        counts = get_path(lengths, split, "histogram", "counts", default=[])
        if counts:
            series.append(charts.Series(translate(f"split.{split}"), edges[: len(counts)], counts))
    return series


def _histogram(context: Context) -> Figure | None:
    """The distribution of caption lengths."""
    histogram = get_path(context.study.data, "structure", "lengths", "histogram", default={})
    edges = get_path(histogram, "edges", default=[])
    counts = get_path(histogram, "counts", default=[])
    if len(edges) < 2 or not counts:
        return None
    titles = translate_all("length.words", "data.captions")
    make = partial(charts.histogram, edges, counts, *titles, width=420)
    caption = translate("data.lengths_of", what=titles[0])
    return context.figures.add("caption-lengths", caption, make, [FILE])


def _top_words(context: Context) -> Figure | None:
    """The most frequent words."""
    pairs = get_path(context.study.data, "structure", "top_words", default=[])
    pairs = [
        pair
        for pair in pairs
        if isinstance(pair, list) and len(pair) == 2 and as_number(pair[1]) is not None
    ][:MAX_TOP_WORDS]
    bars = [(str(word)[:MAX_WORD_CHARS], count) for word, count in pairs]
    caption = translate("caption_data.top_words", n=number(len(bars), "count"))
    return _bar_figure(context, "top-words", caption, bars, "axis.occurrences")


def _sizes(context: Context) -> Figure | None:
    """The size of the vocabulary for several minimum counts: why the recipe's one was chosen."""
    sizes = get_path(context.study.data, "structure", "size_by_min_count", default={})
    bars = [(f"≥ {count}", size) for count, size in sizes.items() if as_number(size) is not None]
    caption = translate("caption_data.sizes")
    return _bar_figure(context, "vocabulary-size", caption, bars, "axis.vocabulary")


def _bar_figure(
    context: Context, name: str, caption: Bilingual, bars: list[tuple[str, float]], axis: str
) -> Figure | None:
    """A figure of counts as bars; None where there are none."""
    if not bars:
        return None
    labels, values = zip(*bars, strict=True)
    make = partial(charts.bars, list(labels), list(values), translate(axis), format=",d")
    return context.figures.add(name, caption, make, [FILE])
