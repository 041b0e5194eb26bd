"""Errors of a model's captions: objects, colours, counts, relations and actions.

The references alone decide. A mention is right when any reference mentions the concept; a concept
is expected when at least two references mention it. Five people leave much of a photograph unsaid,
so a "hallucinated" concept is one that no reference confirms. The same analysis of human captions
(`baselines.human`) gives the ceiling. Colours and counts are not tied to their noun, relations not
to their two objects.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from tarazu.captions.evaluation.concepts.lexicon import load as load_lexicon
from tarazu.captions.metrics.ptb_tokenizer import ptb_like
from tarazu.captions.metrics.scorer import per_image
from tarazu.errors import UserError

MIN_AGREEING_REFERENCES = 2  # references that mention a concept before leaving it out is an error
MAX_LISTED_CONCEPTS = 20
MAX_LISTED_IMAGES = 10
# Relations count in the rates but are not listed: "behind" for "near" hallucinates nothing.
UNLISTED_CATEGORIES = {"relations"}
ERRORS = ("hallucinated", "missed")
RATES = ("precision", "recall", "f1")


def analyse(
    candidates: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    training_captions: Iterable[str] = (),
) -> dict[str, Any]:
    """Analyse the errors of one set of captions.

    Args:
        candidates: one caption by image.
        references: raw captions by image; images without a candidate are ignored.
        training_captions: captions that a novel caption must differ from.

    Returns:
        JSON-able: "errors" with "categories" {name: {"precision", "recall", "f1" (0..1 or None),
        "mentions", "expected"}}, "objects_by_kind" (the category "objects" split further),
        "hallucinated" and "missed" ([[concept, images], ...]), "worst" and "best" (images by
        CIDEr, the most extreme first); "diversity"; "per_image" {image: {"hallucinated",
        "missed"}}.

    Raises:
        UserError: there is no candidate, or one without references.
    """
    missing = [image for image in candidates if not references.get(image)]
    if missing or not candidates:
        raise UserError(
            "captions without references" if missing else "no captions",
            location=", ".join(missing[:3]),
        )
    concepts = {image: judge(text, references[image]) for image, text in candidates.items()}
    listed = {
        image: {part: _listable(parts[part]) for part in ERRORS}
        for image, parts in concepts.items()
    }
    object_categories = load_lexicon().object_categories
    scores = per_image(candidates, references)
    ranked = sorted(candidates, key=lambda image: scores[image]["cider"])
    errors = {
        "categories": rates(
            concepts.values(),
            lambda category: "objects" if category in object_categories else category,
        ),
        "objects_by_kind": rates(
            concepts.values(),
            lambda category: category if category in object_categories else None,
        ),
        "hallucinated": top_k(parts["hallucinated"] for parts in listed.values()),
        "missed": top_k(parts["missed"] for parts in listed.values()),
        "worst": ranked[:MAX_LISTED_IMAGES],
        "best": ranked[: -MAX_LISTED_IMAGES - 1 : -1],
    }
    return {
        "errors": errors,
        "diversity": diversity(list(candidates.values()), training_captions),
        "per_image": listed,
    }


def judge(candidate: str, references: Sequence[str]) -> dict[str, frozenset[str]]:
    """Sort the concepts of one caption.

    Returns:
        "right" and "hallucinated": the concepts that the candidate mentions. "recalled" and
        "missed": the concepts that enough references mention.
    """
    lexicon = load_lexicon()
    mentioned = lexicon.mentions(ptb_like(candidate))
    mentioned_by_reference = [lexicon.mentions(ptb_like(reference)) for reference in references]
    confirmed = lexicon.closure(frozenset().union(*mentioned_by_reference))
    counts = Counter(concept for concepts in mentioned_by_reference for concept in concepts)
    min_count = min(MIN_AGREEING_REFERENCES, len(references))
    expected = frozenset(concept for concept, count in counts.items() if count >= min_count)
    recalled = expected & lexicon.closure(mentioned)
    return {
        "right": mentioned & confirmed,
        "hallucinated": mentioned - confirmed,
        "recalled": recalled,
        "missed": expected - recalled,
    }


def rates(
    images: Iterable[dict[str, frozenset[str]]], group_of: Callable[[str], str | None]
) -> dict[str, dict[str, Any]]:
    """Return precision, recall and F1 by group, with counts summed over images (micro average).

    Args:
        images: `judge`'s result of each image.
        group_of: a lexicon category to the group that it counts in, None to leave it out.
    """
    category_of = load_lexicon().category_of
    counts: dict[str, Counter[str]] = {}
    for group in filter(None, map(group_of, dict.fromkeys(category_of.values()))):
        counts.setdefault(group, Counter())
    for parts in images:
        for part, concepts in parts.items():
            for group in filter(None, (group_of(category_of[concept]) for concept in concepts)):
                counts[group][part] += 1
    return {group: _rate(counts_of_group) for group, counts_of_group in counts.items()}


def _rate(counts: Counter[str]) -> dict[str, Any]:
    """The rates of one group from its counts; None where the denominator is zero."""
    mentions = counts["right"] + counts["hallucinated"]
    expected = counts["recalled"] + counts["missed"]
    precision = counts["right"] / mentions if mentions else None
    recall = counts["recalled"] / expected if expected else None
    f1 = None
    if precision is not None and recall is not None:
        f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return {
        "precision": precision,
        "recall": recall,
        "f1": f1,
        "mentions": mentions,
        "expected": expected,
    }


def _listable(concepts: frozenset[str]) -> list[str]:
    """The concepts that belong in a list of errors, as words, in alphabetical order."""
    category_of = load_lexicon().category_of
    return sorted(
        concept.replace("_", " ")
        for concept in concepts
        if category_of[concept] not in UNLISTED_CATEGORIES
    )


def top_k(lists: Iterable[list[str]]) -> list[list]:
    """Return [[concept, images that have it], ...], most frequent first, ties alphabetical."""
    counts = Counter(concept for concepts in lists for concept in concepts)
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [[concept, count] for concept, count in ranked[:MAX_LISTED_CONCEPTS]]


def diversity(
    captions: Sequence[str], training_captions: Iterable[str] = ()
) -> dict[str, float | int | None]:
    """Measure how varied captions are: vocabulary, mean length, and fractions (0..1) of captions
    that are novel, distinct, or repeat a phrase."""
    tokens = [tuple(ptb_like(caption)) for caption in captions]
    training_tokens = {tuple(ptb_like(caption)) for caption in training_captions}
    novel = sum(words not in training_tokens for words in tokens)
    return {
        "vocabulary_used": len({word for words in tokens for word in words}),
        "novel_fraction": novel / len(tokens) if training_tokens else None,
        "distinct_fraction": len(set(tokens)) / len(tokens),
        "words_mean": sum(map(len, tokens)) / len(tokens),
        "repeated_phrase_fraction": sum(map(has_repetition, tokens)) / len(tokens),
    }


def has_repetition(words: Sequence[str]) -> bool:
    """Return whether a word occurs twice in a row, or the same three words occur twice."""
    trigrams = [tuple(words[i : i + 3]) for i in range(len(words) - 2)]
    doubled = any(a == b for a, b in zip(words, words[1:], strict=False))
    return doubled or len(set(trigrams)) < len(trigrams)


def compare(analyses: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Compare several models' errors on the same images.

    Args:
        analyses: `analyse`'s result by model; "errors" needs "categories" only.

    Returns:
        JSON-able: "images"; "categories" {category: {model: {"precision", "recall", "f1"}}};
        "errors" {model: {"hallucinated", "missed", "hallucinated_alone", "missed_alone"}}, in
        concepts, where "alone" counts those that no other model shares; "shared"
        {"hallucinated", "missed"}: [[concept, images where all models err], ...]; "fewest"
        {model: images on which it alone makes the fewest errors} and "ties".

    Raises:
        UserError: the images differ.
    """
    image_sets = [set(analysis["per_image"]) for analysis in analyses.values()]
    if not image_sets or any(images != image_sets[0] for images in image_sets):
        raise UserError(
            "the models' captions are of different images",
            hint="compare models on the same split",
        )
    shared: dict[str, list[list[str]]] = {part: [] for part in ERRORS}
    errors: dict[str, Counter[str]] = {model: Counter() for model in analyses}
    fewest: Counter[str] = Counter(dict.fromkeys([*analyses, "ties"], 0))
    for image in sorted(image_sets[0]):
        by_model = {model: analysis["per_image"][image] for model, analysis in analyses.items()}
        for part in ERRORS:
            concepts = {model: set(lists[part]) for model, lists in by_model.items()}
            for model, own in concepts.items():
                others = set().union(*(concepts[other] for other in concepts if other != model))
                errors[model].update({part: len(own), f"{part}_alone": len(own - others)})
            shared[part].append(sorted(set.intersection(*concepts.values())))
        totals = {model: sum(len(lists[p]) for p in ERRORS) for model, lists in by_model.items()}
        best = [model for model, total in totals.items() if total == min(totals.values())]
        fewest[best[0] if len(best) == 1 else "ties"] += 1
    return {
        "images": len(image_sets[0]),
        "categories": _categories_by_model(analyses),
        "errors": {model: dict(counts) for model, counts in errors.items()},
        "shared": {part: top_k(lists) for part, lists in shared.items()},
        "ties": fewest.pop("ties"),
        "fewest": dict(fewest),
    }


def _categories_by_model(analyses: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """{category: {model: {"precision", "recall", "f1"}}}"""
    by_model = {model: analysis["errors"]["categories"] for model, analysis in analyses.items()}
    return {
        category: {
            model: {rate: categories[category][rate] for rate in RATES}
            for model, categories in by_model.items()
        }
        for category in next(iter(by_model.values()))
    }
