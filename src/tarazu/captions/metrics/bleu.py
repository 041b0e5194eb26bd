"""BLEU: clipped n-gram precision times a brevity penalty (Papineni et al. 2002), as the COCO scorers define it.

    BLEU-n = penalty * (p_1 ... p_n)^(1/n)      penalty = exp(min(0, 1 - reference length / candidate length))

A corpus score needs only sums over images of ten counts (lengths, and matches and totals of four orders), so the counts
are kept as an array: any resample of the images is one matrix product. The reference length of an image is that of its
closest reference, the shorter of two equally close. The papers' `multi-bleu` script ran with the penalty fixed to 1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

ORDERS = 4
COLUMNS = (
    2 + 2 * ORDERS
)  # candidate length, reference length, matches of orders 1..4, totals of orders 1..4
# The COCO scorer's constants: a total of zero gives 0 rather than an error.
TINY, SMALL = 1e-15, 1e-9


def ngrams(tokens: Sequence[str], orders: int = ORDERS) -> Counter[tuple[str, ...]]:
    """Counts of all n-grams of orders 1..`orders`."""
    return Counter(
        tuple(tokens[i : i + n]) for n in range(1, orders + 1) for i in range(len(tokens) - n + 1)
    )


class References:
    """One image's references, counted once: the most that any single one has of each n-gram, and their lengths."""

    def __init__(self, references: Sequence[Sequence[str]]):
        self.lengths = [len(reference) for reference in references]
        self.most: Counter[tuple[str, ...]] = Counter()
        for reference in references:
            self.most |= ngrams(reference)

    def counts(self, candidate: Sequence[str]) -> list[int]:
        """The ten counts (see `COLUMNS`) of a tokenised candidate."""
        length = len(candidate)
        matches = [0] * ORDERS
        for ngram, count in ngrams(candidate).items():
            matches[len(ngram) - 1] += min(count, self.most.get(ngram, 0))
        closest = min((abs(other - length), other) for other in self.lengths)[1]
        return [length, closest, *matches, *(max(0, length - n) for n in range(ORDERS))]


def brevity_penalty(counts: np.ndarray) -> np.ndarray:
    """exp(1 - r/c) where the candidates are shorter than their references, else 1. `counts` (..., 10) -> (...)."""
    ratio = (counts[..., 0] + TINY) / (counts[..., 1] + SMALL)
    with np.errstate(divide="ignore", over="ignore"):
        return np.where(ratio < 1, np.exp(1 - 1 / ratio), 1.0)


def precisions_mean(counts: np.ndarray) -> np.ndarray:
    """Geometric means of the first 1..4 precisions: BLEU without penalty. `counts` (..., 10) -> (..., 4) in 0..1."""
    matches, totals = counts[..., 2 : 2 + ORDERS], counts[..., 2 + ORDERS :]
    products = np.cumprod((matches + TINY) / (totals + SMALL), axis=-1)
    return products ** (1 / np.arange(1, ORDERS + 1))


def bleu(counts: np.ndarray) -> np.ndarray:
    """BLEU-1..4 of summed counts (corpus) or of single images' counts. `counts` (..., 10) -> (..., 4) in 0..1."""
    counts = np.asarray(counts, dtype=np.float64)
    return precisions_mean(counts) * brevity_penalty(counts)[..., None]
