"""Attention maps of a captioning model, word by word, and an analysis of the weights."""

from __future__ import annotations

import math
from typing import Any

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

MAX_IMAGES, MAX_WORDS = 2, 16
MAX_FOCUSED = 3  # words named as the most focused
MAX_WORD_CHARS = 30
SIMILAR_MAPS = 0.1  # with a total variation below this, the maps of a caption hardly differ


def heat_maps(context: Context, method: MethodView) -> list[dict]:
    """The first images with attention: one map for each word, and what the maps show."""
    views: list[dict] = []
    for sample in method.first.samples:
        if len(views) == MAX_IMAGES:
            break
        if sample.get("image") and _is_valid(sample.get("words"), sample.get("attention")):
            view = _view(context, method, sample, f"heatmap-{method.name}-{len(views) + 1}")
            views += [view] if view else []
    return views


def _is_valid(words: Any, maps: Any) -> bool:
    """Whether there is a map of finite weights for each word, all of one size."""
    if not isinstance(words, list) or not isinstance(maps, list) or not words:
        return False
    if len(maps) < len(words) or not all(isinstance(weights, list) for weights in maps):
        return False
    size = len(maps[0])
    return size > 0 and all(
        len(weights) == size and all(as_number(weight) is not None for weight in weights)
        for weights in maps
    )


def _view(context: Context, method: MethodView, sample: dict, name: str) -> dict | None:
    """The maps of one image; None where the image cannot be read."""
    words = [str(word) for word in sample["words"]][:MAX_WORDS]
    maps = sample["attention"][: len(words)]
    folder, image, top = context.study.path, sample["image"], scale(maps)
    overlays = [
        (data_text(word, MAX_WORD_CHARS), overlay(folder, image, weights, top, word))
        for word, weights in zip(words, maps, strict=True)
    ]
    if any(drawn is None for _, drawn in overlays):
        return None
    file = f"figures/{name}.png"
    return {
        "maps": overlays,
        "id": code(sample.get("id", "?")),
        "analysis": analysis(method, words, maps),
        "file": file if contact_sheet(folder, image, words, maps, folder / file) else None,
        "source": method.first.file("samples.jsonl"),
    }


def entropy(weights: list[float]) -> float:
    """Shannon entropy of an attention map in nats: 0 for one cell, log(cells) if uniform.

    Args:
        weights: attention weights, (cells,); they need not sum to 1.
    """
    total = sum(weights)
    if total <= 0:
        return 0.0
    return -sum(w / total * math.log(w / total) for w in weights if w > 0)


def image_region(weights: list[float]) -> tuple[str, str]:
    """The (vertical, horizontal) third of the image with the largest weight.

    Args:
        weights: attention weights of a square grid, row by row, (cells,).
    """
    side = int(round(len(weights) ** 0.5))
    row, column = divmod(weights.index(max(weights)), side)
    vertical, horizontal = min(2, row * 3 // side), min(2, column * 3 // side)
    return ("top", "middle", "bottom")[vertical], ("left", "centre", "right")[horizontal]


def mean_total_variation(maps: list[list[float]]) -> float:
    """Mean total variation distance of the maps from their mean map: 0 where all are equal.

    Args:
        maps: attention weights, (words, cells).
    """
    mean = [sum(column) / len(maps) for column in zip(*maps, strict=True)]
    distances = [
        sum(abs(weight - centre) for weight, centre in zip(weights, mean, strict=True)) / 2
        for weights in maps
    ]
    return sum(distances) / len(maps)


def analysis(method: MethodView, words: list[str], maps: list[list[float]]) -> list[Bilingual]:
    """The most focused words and their regions, the most diffuse word, and the maps' variation.

    Args:
        words: one word for each map.
        maps: attention weights, (words, cells).
    """
    source = method.first.file("samples.jsonl")
    max_entropy = number(math.log(len(maps[0])), "two")
    entropies = [entropy(weights) for weights in maps]
    by_focus = sorted(range(len(maps)), key=entropies.__getitem__)
    focused = [_focus_text(words[i], maps[i], entropies[i]) for i in by_focus[:MAX_FOCUSED]]
    widest = max(range(len(maps)), key=entropies.__getitem__)
    return [
        translate("attention.most_focused", words=joined(focused), max=max_entropy),
        translate(
            "attention.most_diffuse",
            word=data_text(words[widest], MAX_WORD_CHARS),
            entropy=number(entropies[widest], "two", source),
            max=max_entropy,
        ),
        _variation_sentence(mean_total_variation(maps), source),
    ]


def _variation_sentence(variation: float, source: str) -> Bilingual:
    """Whether attention moves from word to word."""
    key = "attention.same" if variation < SIMILAR_MAPS else "attention.differ"
    return translate(key, variation=number(variation, "percent", source))


def _focus_text(word: str, weights: list[float], word_entropy: float) -> Bilingual:
    """A word with the image region that it looks at and the entropy of its map."""
    vertical, horizontal = image_region(weights)
    region = translate(
        "attention.region",
        vertical=translate(f"image_region.{vertical}"),
        horizontal=translate(f"image_region.{horizontal}"),
        entropy=number(word_entropy, "two"),
    )
    return spaced(translate("attention.word", word=data_text(word, MAX_WORD_CHARS)), region)


def entropy_sentences(method: MethodView) -> list[Bilingual]:
    """Over the test split: the mean entropy, and how much the maps of one caption differ."""
    statistics, source = method.first.metrics.get("entropy"), method.first.file("metrics.json")
    mean, maximum, variation = (
        as_number(get_path(statistics, key)) for key in ("mean", "max", "variation")
    )
    if mean is None or not maximum:
        return []
    sentence = translate(
        "attention.mean",
        mean=number(mean, "two", source),
        max=number(maximum, "two", source),
        fraction=number(mean / maximum, "percent", source),
    )
    return [sentence] + ([] if variation is None else [_variation_sentence(variation, source)])
