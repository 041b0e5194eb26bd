"""BLEU: clipped n-gram precision times a brevity penalty (Papineni et al. 2002), COCO's version.

    BLEU-n = penalty * (p_1 ... p_n)^(1/n)
    penalty = exp(min(0, 1 - reference length / candidate length))

A corpus score needs only sums over images of ten counts: two lengths, and the matches and totals of
four orders. The counts are therefore kept as an array (images, 10), and any resample of the images
is one matrix product. The reference length of an image is that of its closest reference, the
shorter of two equally close. The papers' `multi-bleu` script ran with the penalty fixed to 1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

ORDERS = 4
# Constants of the COCO scorer: a total of zero gives 0 instead of an error.
TINY, SMALL = 1e-15, 1e-9


def ngrams(tokens: Sequence[str], orders: int = ORDERS) -> Counter[tuple[str, ...]]:
    """Count all n-grams of orders 1..`orders`."""
    return Counter(
        tuple(tokens[i : i + n]) for n in range(1, orders + 1) for i in range(len(tokens) - n + 1)
    )


class References:
    """One image's references, counted once: lengths, and the highest count of each n-gram.

    Args:
        references: tokenised captions of one image.
    """

    def __init__(self, references: Sequence[Sequence[str]]):
        self.lengths = [len(reference) for reference in references]
        self.max_counts: Counter[tuple[str, ...]] = Counter()
        for reference in references:
            self.max_counts |= ngrams(reference)

    def counts(self, candidate: Sequence[str]) -> list[int]:
        """Return the ten counts of a tokenised candidate.

        Returns:
            Candidate length, closest reference length, four matches and four totals by order.
        """
        length = len(candidate)
        matches = [0] * ORDERS
        for ngram, count in ngrams(candidate).items():
            # Clipped: an n-gram matches at most as often as one reference has it.
            matches[len(ngram) - 1] += min(count, self.max_counts.get(ngram, 0))
        closest = min((abs(other - length), other) for other in self.lengths)[1]
        return [length, closest, *matches, *(max(0, length - n) for n in range(ORDERS))]


def brevity_penalty(counts: np.ndarray) -> np.ndarray:
    """Return exp(1 - r/c) where candidates are shorter than their references, else 1.

    Args:
        counts: (..., 10).

    Returns:
        (...,) in 0..1.
    """
    ratio = (counts[..., 0] + TINY) / (counts[..., 1] + SMALL)
    with np.errstate(divide="ignore", over="ignore"):
        return np.where(ratio < 1, np.exp(1 - 1 / ratio), 1.0)


def mean_precisions(counts: np.ndarray) -> np.ndarray:
    """Return the geometric means of the first 1..4 precisions: BLEU-1..4 without the penalty.

    Args:
        counts: (..., 10).

    Returns:
        (..., 4) in 0..1.
    """
    matches, totals = counts[..., 2 : 2 + ORDERS], counts[..., 2 + ORDERS :]
    products = np.cumprod((matches + TINY) / (totals + SMALL), axis=-1)
    return products ** (1 / np.arange(1, ORDERS + 1))


def bleu(counts: np.ndarray) -> np.ndarray:
    """Return BLEU-1..4 of summed counts (a corpus) or of single images' counts.

    Args:
        counts: (..., 10).

    Returns:
        (..., 4) in 0..1.
    """
    counts = np.asarray(counts, dtype=np.float64)
    return mean_precisions(counts) * brevity_penalty(counts)[..., None]
