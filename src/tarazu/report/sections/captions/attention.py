"""Heat maps of attention, word by word, with an analysis that is computed from the weights."""

from __future__ import annotations

import math

from tarazu.report.analysis.study_view import MethodView, as_number, get_path
from tarazu.report.render.bilingual import (
    Bilingual,
    code,
    data_text,
    joined,
    number,
    spaced,
    translate,
)
from tarazu.report.render.images import contact_sheet, overlay, scale
from tarazu.report.sections.common.base import Context

IMAGES, WORDS = 2, 16
NEAR_EQUAL = 0.1  # total variation below this: the maps of a sentence hardly differ


def heat_maps(context: Context, method: MethodView) -> list[dict]:
    """The first images that have attention: one small map a word, and what they say."""
    found = []
    for sample in method.first.samples:
        words, rows = sample.get("words"), sample.get("attention")
        if len(found) == IMAGES or not _sound(words, rows) or not sample.get("image"):
            continue
        view = _view(
            context,
            method,
            sample,
            [str(w) for w in words][:WORDS],
            rows[:WORDS],
            f"heatmap-{method.name}-{len(found) + 1}",
        )
        if view:
            found.append(view)
    return found


def _sound(words, rows) -> bool:
    """Whether there is a row of finite weights for each word."""
    return (
        isinstance(words, list)
        and isinstance(rows, list)
        and bool(words)
        and len(rows) >= len(words)
        and all(
            isinstance(row, list)
            and len(row) == len(rows[0]) > 0
            and all(as_number(v) is not None for v in row)
            for row in rows
        )
    )


def _view(
    context: Context,
    method: MethodView,
    sample: dict,
    words: list[str],
    rows: list[list[float]],
    name: str,
) -> dict | None:
    top = scale(rows)
    maps = [
        (data_text(word, 30), overlay(context.study.path, sample["image"], row, top, f"{word}"))
        for word, row in zip(words, rows, strict=False)
    ]
    if not maps or any(image is None for _, image in maps):
        return None
    drawn = contact_sheet(
        context.study.path,
        sample["image"],
        words,
        rows,
        context.study.path / "figures" / f"{name}.png",
    )
    return {
        "maps": maps,
        "id": code(sample.get("id", "?")),
        "analysis": analysis(method, words, rows),
        "file": f"figures/{name}.png" if drawn else None,
        "source": method.first.file("samples.jsonl"),
    }


def entropy(row: list[float]) -> float:
    """How widely a map is spread, in nats: 0 is one cell, log(cells) all alike."""
    total = sum(row)
    return -sum(v / total * math.log(v / total) for v in row if v > 0) if total > 0 else 0.0


def place(row: list[float]) -> tuple[str, str]:
    """(vertical, horizontal) third of the image in which the largest weight lies."""
    side = int(round(len(row) ** 0.5))
    index = row.index(max(row))
    thirds = [min(2, (index // side) * 3 // side), min(2, (index % side) * 3 // side)]
    return ("top", "middle", "bottom")[thirds[0]], ("left", "centre", "right")[thirds[1]]


def analysis(method: MethodView, words: list[str], rows: list[list[float]]) -> list[Bilingual]:
    """Which words are looked for most sharply, where, and whether the maps differ at all."""
    source = method.first.file("samples.jsonl")
    spread = [(entropy(row), word, row) for word, row in zip(words, rows, strict=False)]
    sharp = sorted(spread, key=lambda item: item[0])[:3]
    most = math.log(len(rows[0]))
    found = [
        translate(
            "attention.sharp",
            words=joined([_where(word, row) for _, word, row in sharp]),
            most=number(most, "two"),
        ),
        translate(
            "attention.wide",
            word=data_text(max(spread, key=lambda item: item[0])[1], 30),
            nats=number(max(spread, key=lambda item: item[0])[0], "two", source),
            most=number(most, "two"),
        ),
    ]
    mean = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
    differ = sum(sum(abs(v - m) for v, m in zip(row, mean, strict=True)) / 2 for row in rows) / len(
        rows
    )
    found.append(
        translate(
            "attention.same" if differ < NEAR_EQUAL else "attention.differ",
            share=number(differ, "percent", source),
        )
    )
    return found


def _where(word: str, row: list[float]) -> Bilingual:
    vertical, horizontal = place(row)
    return spaced(
        translate("attention.word", word=data_text(word, 30)),
        translate(
            "attention.at",
            vertical=translate(f"image_region.{vertical}"),
            horizontal=translate(f"image_region.{horizontal}"),
            nats=number(entropy(row), "two"),
        ),
    )


def entropy_sentences(method: MethodView) -> list[Bilingual]:
    """The whole test split: mean entropy, and how much the maps of one sentence differ."""
    found, source = (
        get_path(method.first.metrics, "entropy", default={}),
        method.first.file("metrics.json"),
    )
    mean, most = as_number(get_path(found, "mean")), as_number(get_path(found, "max"))
    if mean is None or not most:
        return []
    sentences = [
        translate(
            "attention.mean",
            mean=number(mean, "two", source),
            most=number(most, "two", source),
            share=number(mean / most, "percent", source),
        )
    ]
    variation = as_number(get_path(found, "variation"))
    if variation is not None:
        sentences.append(
            translate(
                "attention.same" if variation < NEAR_EQUAL else "attention.differ",
                share=number(variation, "percent", source),
            )
        )
    return sentences
