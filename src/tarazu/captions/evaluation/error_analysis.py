"""What a model's captions get wrong: things, colours, counts, relations and actions, against the references alone.

A mention is right when any reference mentions the concept, and a concept should be mentioned when at least two do. Five
people leave much of a photograph unsaid, so a "wrong" mention is one that nobody confirms: give a person's captions the
same test (`yardsticks.human`) to see the ceiling. Colours and counts are not tied to their noun,
nor relations to their two.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache

from tarazu.captions.evaluation.concepts.lexicon import Lexicon, load
from tarazu.captions.evaluation.concepts.nouns import NOUNS
from tarazu.captions.metrics.ptb_tokenizer import ptb_like
from tarazu.captions.metrics.scorer import per_image
from tarazu.errors import UserError

AGREED = 2  # references that must mention a concept before leaving it out counts as missing it
LISTED = 20  # words in the lists of invented and missed
SHOWN = 10  # images in the lists of worst and best
# Relations are scored but not listed: "behind" where the references say "near" invents nothing.
UNLISTED = {"relations"}
ERRORS = ("hallucinated", "missed")
RATES = ("precision", "recall", "f1")

lexicon = cache(load)


def analyse(
    candidates: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    training_captions: Iterable[str] = (),
) -> dict:
    """Error analysis of one set of captions, JSON-able.

    Args:
        candidates: one caption by image.
        references: the raw captions of each of these images, and maybe of others.
        training_captions: to tell which captions are new.

    Returns:
        "categories": {name: {"precision", "recall", "f1" (0..1 or None), "mentions", "expected"}}, with "objects"
        split further in "objects_by_kind"; "hallucinated" and "missed": [[concept, count], ...]; "worst" and "best": images by
        CIDEr, the most telling first; all these once more as "errors", which metrics.json keeps; "diversity";
        "per_image": {image: {"hallucinated", "missed"}}.
    """
    missing = [image for image in candidates if not references.get(image)]
    if missing or not candidates:
        raise UserError(
            "captions without references" if missing else "no captions",
            location=", ".join(missing[:3]),
        )
    found = {image: judge(text, references[image]) for image, text in candidates.items()}
    listed = {
        image: {part: listable(concepts[part]) for part in ERRORS}
        for image, concepts in found.items()
    }
    scores = per_image(candidates, references)
    ranked = sorted(candidates, key=lambda image: scores[image]["cider"])
    summary = {
        "categories": rates(found.values(), lambda kind: "objects" if kind in NOUNS else kind),
        "objects_by_kind": rates(found.values(), lambda kind: kind if kind in NOUNS else None),
        "hallucinated": top_k(words["hallucinated"] for words in listed.values()),
        "missed": top_k(words["missed"] for words in listed.values()),
        "worst": ranked[:SHOWN],
        "best": ranked[: -SHOWN - 1 : -1],
    }
    varied = diversity(list(candidates.values()), training_captions)
    return {**summary, "errors": summary, "diversity": varied, "per_image": listed}


def judge(candidate: str, references: Sequence[str]) -> dict[str, frozenset[str]]:
    """The concepts of one caption: "right" and "hallucinated" mentions; "recalled" and "missed" of those expected of it."""
    words: Lexicon = lexicon()
    said = words.mentions(ptb_like(candidate))
    theirs = [words.mentions(ptb_like(reference)) for reference in references]
    confirmed = words.closure(frozenset().union(*theirs))
    counts = Counter(concept for concepts in theirs for concept in concepts)
    expected = frozenset(
        concept for concept, count in counts.items() if count >= min(AGREED, len(references))
    )
    caught = expected & words.closure(said)
    return {
        "right": said & confirmed,
        "hallucinated": said - confirmed,
        "recalled": caught,
        "missed": expected - caught,
    }


def rates(found: Iterable[dict[str, frozenset[str]]], category_of) -> dict[str, dict]:
    """Precision, recall and F1 by category, summed over images (micro average)."""
    kind = lexicon().kind
    sums: dict[str, Counter] = {}
    for category in filter(None, map(category_of, dict.fromkeys(kind.values()))):
        sums.setdefault(category, Counter())
    for concepts in found:
        for part, names in concepts.items():
            for category in filter(None, (category_of(kind[name]) for name in names)):
                sums[category][part] += 1
    return {category: rate(counts) for category, counts in sums.items()}


def rate(counts: Counter) -> dict:
    """The figures of one category from its sums; None where there is nothing to divide by."""
    mentions, expected = (
        counts["right"] + counts["hallucinated"],
        counts["recalled"] + counts["missed"],
    )
    precision = counts["right"] / mentions if mentions else None
    recall = counts["recalled"] / expected if expected else None
    known = precision is not None and recall is not None
    f1 = (
        (2 * precision * recall / (precision + recall) if precision + recall else 0.0)
        if known
        else None
    )
    return {
        "precision": precision,
        "recall": recall,
        "f1": f1,
        "mentions": mentions,
        "expected": expected,
    }


def listable(concepts: frozenset[str]) -> list[str]:
    """Concepts that are worth listing, as words, in alphabetical order."""
    kind = lexicon().kind
    return sorted(
        concept.replace("_", " ") for concept in concepts if kind[concept] not in UNLISTED
    )


def top_k(lists: Iterable[list[str]]) -> list[list]:
    """The most frequent words and in how many images, ties in alphabetical order."""
    counts = Counter(word for words in lists for word in words)
    return [
        [word, count]
        for word, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:LISTED]
    ]


def diversity(
    captions: Sequence[str], training_captions: Iterable[str] = ()
) -> dict[str, float | int | None]:
    """How varied captions are: words used, shares of new, of distinct and of stuttering captions, mean length."""
    tokens = [tuple(ptb_like(caption)) for caption in captions]
    seen = {tuple(ptb_like(caption)) for caption in training_captions}
    n = len(tokens)
    return {
        "vocabulary_used": len({word for words in tokens for word in words}),
        "novel_fraction": sum(words not in seen for words in tokens) / n if seen else None,
        "distinct_fraction": len(set(tokens)) / n,
        "words_mean": sum(map(len, tokens)) / n,
        "repeated_phrase_fraction": sum(map(repeats, tokens)) / n,
    }


def repeats(words: Sequence[str]) -> bool:
    """Whether a caption stutters: a word twice in a row, or the same three words twice."""
    triples = [tuple(words[i : i + 3]) for i in range(len(words) - 2)]
    return len(set(triples)) < len(triples) or any(
        a == b for a, b in zip(words, words[1:], strict=False)
    )


def compare(analyses: Mapping[str, dict]) -> dict:
    """Several models' errors on the same images, JSON-able. Raises `UserError` when the images differ.

    Returns:
        "images"; "categories": {category: {model: {"precision", "recall", "f1"}}}; "errors": {model: {"hallucinated",
        "missed", "hallucinated_alone", "missed_alone"}} in concepts, where "alone" counts those that no other model shares;
        "shared": {"hallucinated", "missed"}: [[concept, images where all models do it], ...]; "fewest": {model: images on
        which it alone makes the fewest errors} and "ties".
    """
    images = [set(analysis["per_image"]) for analysis in analyses.values()]
    if not images or any(other != images[0] for other in images):
        raise UserError(
            "the models' captions are of different images", hint="compare models on the same split"
        )
    by_model = {name: analysis["per_image"] for name, analysis in analyses.items()}
    shared, errors = {part: [] for part in ERRORS}, {name: Counter() for name in analyses}
    fewest: Counter = Counter(dict.fromkeys(analyses, 0))
    for image in sorted(images[0]):
        here = {name: per_image[image] for name, per_image in by_model.items()}
        for part, common in shared.items():
            common.append(
                count_part({name: set(words[part]) for name, words in here.items()}, part, errors)
            )
        totals = {
            name: len(words["hallucinated"]) + len(words["missed"]) for name, words in here.items()
        }
        least = [name for name, total in totals.items() if total == min(totals.values())]
        fewest[least[0] if len(least) == 1 else "ties"] += 1
    return {
        "images": len(images[0]),
        "categories": categories_side_by_side(analyses),
        "errors": {name: dict(counts) for name, counts in errors.items()},
        "shared": {part: top_k(lists) for part, lists in shared.items()},
        "ties": fewest.pop("ties", 0),
        "fewest": dict(fewest),
    }


def count_part(words: dict[str, set[str]], part: str, errors: dict[str, Counter]) -> list[str]:
    """Adds one image's errors to each model's counts; returns those that all models share."""
    for name, own in words.items():
        others = set().union(*(words[other] for other in words if other != name))
        errors[name].update({part: len(own), f"{part}_alone": len(own - others)})
    return sorted(set.intersection(*words.values()))


def categories_side_by_side(analyses: Mapping[str, dict]) -> dict:
    """{category: {model: {"precision", "recall", "f1"}}}"""
    names = next(iter(analyses.values()))["categories"]

    def row(category: str) -> dict:
        return {
            name: {key: one["categories"][category][key] for key in RATES}
            for name, one in analyses.items()
        }

    return {category: row(category) for category in names}
