"""Statistics of a caption collection for data.json: sizes, lengths, words, examples."""

from __future__ import annotations

from collections import Counter

import numpy as np

from tarazu.captions.data.vocabulary import SPECIALS, UNK, Vocabulary, clean

MIN_COUNTS = (1, 2, 3, 4, 5, 8, 10)  # of which the vocabulary's size is shown
MAX_POINTS = 2000  # of the scatter plot


def structure(
    captions: dict[str, list[str]], splits: dict[str, list[str]], vocabulary: Vocabulary
) -> dict:
    """Measure a collection; lengths are in words after cleaning.

    Args:
        captions: raw captions by image.
        splits: image names by split.
        vocabulary: of the training split.

    Returns:
        `structure` of data.json (see docs/run_folder.md).
    """
    words = {
        name: [clean(text) for text in captions[name]]
        for names in splits.values()
        for name in names
    }
    words_of_split = {
        split: [line for name in names for line in words[name]] for split, names in splits.items()
    }
    lengths_of_split = {
        split: [len(line) for line in lines] for split, lines in words_of_split.items()
    }
    all_lengths = [length for lengths in lengths_of_split.values() for length in lengths]
    counts = Counter(word for lines in words.values() for line in lines for word in line)
    train_counts = Counter(word for line in words_of_split["train"] for word in line)
    test_ids = [number for line in words_of_split["test"] for number in vocabulary.encode(line)]
    test_words = [number for number in test_ids if number >= UNK]
    return {
        "images": len(words),
        "captions": len(all_lengths),
        "lengths": length_statistics(all_lengths),
        "lengths_per_split": {
            split: length_statistics(lengths) for split, lengths in lengths_of_split.items()
        },
        "length_points": length_points(list(words.values())),
        "top_words": [list(pair) for pair in counts.most_common(20)],
        "vocabulary": len(vocabulary),
        "min_count": vocabulary.min_count,
        "max_length": vocabulary.max_length,
        "truncated_captions": sum(length > vocabulary.max_length for length in all_lengths),
        "unknown_test_fraction": test_words.count(UNK) / max(1, len(test_words)),
        "size_by_min_count": {
            str(n): len(SPECIALS) + sum(count >= n for count in train_counts.values())
            for n in MIN_COUNTS
        },
    }


def length_statistics(lengths: list[int]) -> dict:
    """Return mean, percentiles, and a histogram with one bar per number of words."""
    values = np.asarray(lengths or [0])
    longest = int(values.max())
    counts = np.bincount(values, minlength=longest + 1)
    p50, p90, p99 = (float(x) for x in np.percentile(values, [50, 90, 99]))
    return {
        "mean": float(values.mean()),
        "p50": p50,
        "p90": p90,
        "p99": p99,
        "max": longest,
        "histogram": {"edges": list(range(longest + 2)), "counts": counts.tolist()},
    }


def length_points(words: list[list[list[str]]]) -> list[list[int]]:
    """Return points of the scatter plot, every k-th so that at most `MAX_POINTS` remain.

    Args:
        words: of each caption of each image.

    Returns:
        [number of the image, words of one of its captions].
    """
    points = [[number, len(line)] for number, lines in enumerate(words) for line in lines]
    return points[:: max(1, -(-len(points) // MAX_POINTS))]


def examples(
    captions: dict[str, list[str]], names: list[str], vocabulary: Vocabulary
) -> list[dict]:
    """Return images with their captions as written, as words, and as ids."""
    rows = []
    for name in names:
        words = [clean(text) for text in captions[name]]
        rows.append(
            {
                "id": name,
                "image": f"images/{jpeg_name(name)}",
                "captions": captions[name],
                "processed": words,
                "ids": [vocabulary.encode(line) for line in words],
            }
        )
    return rows


def jpeg_name(name: str) -> str:
    """Return the file name of an image's thumbnail in the run folder."""
    return name.rsplit(".", 1)[0] + ".jpg"
