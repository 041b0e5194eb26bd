"""CIDEr: likeness of tf-idf weighted n-grams, averaged over references (Vedantam et al. 2015), as pycocoevalcap has it.

    score = 10 * mean over n = 1..4, over references, of
            exp(-(length difference)^2 / (2 * 6^2)) * sum(min(candidate, reference) * reference)
            / (|candidate| * |reference|)

with the weight of an n-gram = its count * (log N - log df), df = the images (of N) whose references have it. Words that
most captions share weigh little: that is why a constant caption scores near 0 here, but not in BLEU. What COCO's tables
call CIDEr is this: the clipping and the Gaussian are those of CIDEr-D, the frequencies those of the evaluated split.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from tarazu.captions.metrics.bleu import ORDERS, ngrams
from tarazu.captions.metrics.ptb_tokenizer import ptb_like
from tarazu.errors import UserError

SIGMA = 6.0
Ngram = tuple[str, ...]
Weighed = tuple[dict[Ngram, list[tuple[int, float]]], list[tuple[list[float], int]]]


class Cider:
    """References weighed once, for scoring many candidates, as validation does after every epoch.

    Args:
        references: raw captions of each image; they also give the document frequencies.
    """

    def __init__(self, references: Mapping[str, Sequence[str]]):
        self.frequency: Counter[Ngram] = Counter()
        self.counts: dict[str, list[Counter[Ngram]]] = {}
        for image, captions in references.items():
            self.counts[image] = [ngrams(ptb_like(caption)) for caption in captions]
            self.frequency.update({ngram for counts in self.counts[image] for ngram in counts})
        self.log_images = math.log(max(1, len(self.counts)))
        self.weighed: dict[str, Weighed] = {}  # filled as images are asked for

    def scores(self, candidates: Mapping[str, str]) -> np.ndarray:
        """CIDEr of each candidate, in its order. (len(candidates),), 0..10; the corpus score is the mean."""
        return self.rewards(list(candidates), list(candidates.values()))

    def rewards(self, images: Sequence[str], candidates: Sequence[str]) -> np.ndarray:
        """CIDEr of each (image, candidate) pair, images in any order and number. Raises `UserError` for an unknown image."""
        return np.array(
            [
                self.score(image, ptb_like(text))
                for image, text in zip(images, candidates, strict=True)
            ]
        )

    def score(self, image: str, tokens: Sequence[str]) -> float:
        """CIDEr of one tokenised candidate, 0..10."""
        weights, references = self.weigh_references(image)
        counts = ngrams(tokens)
        norms, length = self.norms(counts), bigrams(counts)
        dots = [[0.0] * ORDERS for _ in references]
        for ngram, count in counts.items():
            for reference, weight in weights.get(ngram, ()):
                dots[reference][len(ngram) - 1] += min(count * self.idf(ngram), weight) * weight
        total = 0.0
        for dot, (reference_norms, reference_length) in zip(dots, references, strict=True):
            cosines = sum(
                d / (a * b) for d, a, b in zip(dot, norms, reference_norms, strict=True) if a and b
            )
            total += cosines * math.exp(-((length - reference_length) ** 2) / (2 * SIGMA**2))
        return 10 * total / ORDERS / len(references)

    def idf(self, ngram: Ngram) -> float:
        """log(N / df); an n-gram that no reference has counts as seen once."""
        return self.log_images - math.log(max(1, self.frequency.get(ngram, 0)))

    def norms(self, counts: Counter[Ngram]) -> list[float]:
        """Length of the tf-idf vector of each order."""
        squares = [0.0] * ORDERS
        for ngram, count in counts.items():
            squares[len(ngram) - 1] += (count * self.idf(ngram)) ** 2
        return [math.sqrt(square) for square in squares]

    def weigh_references(self, image: str) -> Weighed:
        """n-gram -> [(reference, weight)], and each reference's (norms, length). Kept, so it is done once per image."""
        if image not in self.weighed:
            if not self.counts.get(image):
                raise UserError(
                    "has no reference captions",
                    location=str(image),
                    hint="score only images with captions",
                )
            weights: dict[Ngram, list[tuple[int, float]]] = {}
            for i, counts in enumerate(self.counts[image]):
                for ngram, count in counts.items():
                    weights.setdefault(ngram, []).append((i, count * self.idf(ngram)))
            self.weighed[image] = (
                weights,
                [(self.norms(counts), bigrams(counts)) for counts in self.counts[image]],
            )
        return self.weighed[image]


def bigrams(counts: Counter[Ngram]) -> int:
    """The length that the reference implementation compares: its number of bigrams, one less than its words."""
    return sum(count for ngram, count in counts.items() if len(ngram) == 2)
