"""The numbers of a caption collection that data.json holds: sizes, lengths, words, examples."""

from __future__ import annotations

from collections import Counter

import numpy as np

from tarazu.captions.data.vocabulary import SPECIALS, UNK, Vocabulary, clean

COUNTS = (1, 2, 3, 4, 5, 8, 10)
MAX_POINTS = 2000


def structure(
    captions: dict[str, list[str]], splits: dict[str, list[str]], vocabulary: Vocabulary
) -> dict:
    """The figures of a collection; lengths are in words after cleaning."""
    words = {
        name: [clean(text) for text in captions[name]]
        for images in splits.values()
        for name in images
    }
    per_split = {
        split: [len(line) for name in images for line in words[name]]
        for split, images in splits.items()
    }
    everything = [length for split in per_split.values() for length in split]
    counts = Counter(word for lines in words.values() for line in lines for word in line)
    trained = Counter(word for name in splits["train"] for line in words[name] for word in line)
    tested = [
        number
        for name in splits["test"]
        for line in words[name]
        for number in vocabulary.encode(line)
    ]
    known = [number for number in tested if number >= UNK]
    return {
        "images": len(words),
        "captions": len(everything),
        "lengths": lengths(everything),
        "lengths_per_split": {split: lengths(numbers) for split, numbers in per_split.items()},
        "length_points": points(list(words.values())),
        "top_words": [list(pair) for pair in counts.most_common(20)],
        "vocabulary": len(vocabulary),
        "min_count": vocabulary.min_count,
        "max_length": vocabulary.max_length,
        "truncated_captions": sum(length > vocabulary.max_length for length in everything),
        "unknown_test_fraction": known.count(UNK) / max(1, len(known)),
        "size_by_min_count": {
            str(n): len(SPECIALS) + sum(count >= n for count in trained.values()) for n in COUNTS
        },
    }


def lengths(numbers: list[int]) -> dict:
    """Mean, percentiles and a histogram with one bar a word."""
    values = np.asarray(numbers or [0])
    top = int(values.max())
    counts = np.bincount(values, minlength=top + 1)
    p50, p90, p99 = (float(x) for x in np.percentile(values, [50, 90, 99]))
    return {
        "mean": float(values.mean()),
        "p50": p50,
        "p90": p90,
        "p99": p99,
        "max": top,
        "histogram": {"edges": list(range(top + 2)), "counts": counts.tolist()},
    }


def points(words: list[list[list[str]]]) -> list[list[int]]:
    """[number of the image, words in one of its captions] for the scatter plot, evenly thinned out."""
    found = [[number, len(line)] for number, lines in enumerate(words) for line in lines]
    return found[:: max(1, -(-len(found) // MAX_POINTS))]


def examples(
    captions: dict[str, list[str]], names: list[str], vocabulary: Vocabulary
) -> list[dict]:
    """Pictures with their captions as written, as words and as numbers."""
    found = []
    for name in names:
        words = [clean(text) for text in captions[name]]
        found.append(
            {
                "id": name,
                "image": f"images/{jpeg_name(name)}",
                "captions": captions[name],
                "processed": words,
                "ids": [vocabulary.encode(line) for line in words],
            }
        )
    return found


def jpeg_name(name: str) -> str:
    """The name of a picture's small copy in the run folder."""
    return name.rsplit(".", 1)[0] + ".jpg"
