"""CIDEr: similarity of tf-idf weighted n-grams (Vedantam et al. 2015), as in pycocoevalcap.

    score = 10 * mean over n = 1..4 and over references of
            exp(-(length difference)^2 / (2 * 6^2)) * sum(min(candidate, reference) * reference)
            / (|candidate| * |reference|)

The weight of an n-gram is its count * (log N - log df); df is the number of images (of N) whose
references have it. Words that most captions share weigh little, so a constant caption scores near 0
here but not in BLEU. The clipping and the Gaussian are those of CIDEr-D, and the document
frequencies those of the evaluated split: this is what COCO's tables call CIDEr.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tarazu.captions.metrics.bleu import ORDERS, ngrams
from tarazu.captions.metrics.ptb_tokenizer import ptb_like
from tarazu.errors import UserError

SIGMA = 6.0  # of the Gaussian on the length difference
Ngram = tuple[str, ...]


@dataclass(frozen=True)
class WeightedReferences:
    """The tf-idf vectors of one image's references.

    Args:
        weights: n-gram to (reference index, weight) of each reference that has it.
        norms: norm of each reference's vector, by order.
        lengths: number of bigrams of each reference.
    """

    weights: dict[Ngram, list[tuple[int, float]]]
    norms: list[list[float]]
    lengths: list[int]


class Cider:
    """References weighted once, for scoring many candidates, as validation does every epoch.

    Args:
        references: raw captions of each image; they also give the document frequencies.
    """

    def __init__(self, references: Mapping[str, Sequence[str]]):
        self.document_frequency: Counter[Ngram] = Counter()
        self.counts: dict[str, list[Counter[Ngram]]] = {}
        for image, captions in references.items():
            self.counts[image] = [ngrams(ptb_like(caption)) for caption in captions]
            self.document_frequency.update(set().union(*self.counts[image]))
        self.log_images = math.log(max(1, len(self.counts)))
        self._weighted: dict[str, WeightedReferences] = {}  # filled on demand

    def scores(self, candidates: Mapping[str, str]) -> np.ndarray:
        """Return the CIDEr of each image's caption, 0..10; the corpus score is the mean.

        Args:
            candidates: one raw caption by image.

        Returns:
            (images,), in the candidates' order.

        Raises:
            UserError: an image has no references.
        """
        return self.scores_of_pairs(list(candidates), list(candidates.values()))

    def scores_of_pairs(self, images: Sequence[str], candidates: Sequence[str]) -> np.ndarray:
        """Return the CIDEr of each (image, caption) pair, 0..10; images may repeat.

        Args:
            images: (pairs,) names.
            candidates: (pairs,) raw captions.

        Returns:
            (pairs,).

        Raises:
            UserError: an image has no references.
        """
        pairs = zip(images, candidates, strict=True)
        return np.array([self.score(image, ptb_like(text)) for image, text in pairs])

    def score(self, image: str, tokens: Sequence[str]) -> float:
        """Return the CIDEr of one tokenised candidate, 0..10.

        Raises:
            UserError: the image has no references.
        """
        references = self._weighted_references(image)
        counts = ngrams(tokens)
        norms, length = self._norms(counts), _bigrams(counts)
        # Dot products of the clipped candidate with each reference, by order.
        dots = [[0.0] * ORDERS for _ in references.norms]
        for ngram, count in counts.items():
            for reference, weight in references.weights.get(ngram, ()):
                clipped = min(count * self._idf(ngram), weight)
                dots[reference][len(ngram) - 1] += clipped * weight
        total = 0.0
        for dot, reference_norms, reference_length in zip(
            dots, references.norms, references.lengths, strict=True
        ):
            cosines = sum(
                d / (a * b) for d, a, b in zip(dot, norms, reference_norms, strict=True) if a and b
            )
            total += cosines * math.exp(-((length - reference_length) ** 2) / (2 * SIGMA**2))
        return 10 * total / ORDERS / len(references.norms)

    def _idf(self, ngram: Ngram) -> float:
        """log(N / df); an n-gram that no reference has counts as seen once."""
        return self.log_images - math.log(max(1, self.document_frequency.get(ngram, 0)))

    def _norms(self, counts: Counter[Ngram]) -> list[float]:
        """Norms of the tf-idf vector, by order."""
        squares = [0.0] * ORDERS
        for ngram, count in counts.items():
            squares[len(ngram) - 1] += (count * self._idf(ngram)) ** 2
        return [math.sqrt(square) for square in squares]

    def _weighted_references(self, image: str) -> WeightedReferences:
        """The tf-idf vectors of an image's references, computed once."""
        if image not in self._weighted:
            if not self.counts.get(image):
                raise UserError(
                    "has no reference captions",
                    location=str(image),
                    hint="score only images with captions",
                )
            weights: dict[Ngram, list[tuple[int, float]]] = {}
            for i, counts in enumerate(self.counts[image]):
                for ngram, count in counts.items():
                    weights.setdefault(ngram, []).append((i, count * self._idf(ngram)))
            self._weighted[image] = WeightedReferences(
                weights,
                [self._norms(counts) for counts in self.counts[image]],
                [_bigrams(counts) for counts in self.counts[image]],
            )
        return self._weighted[image]


def _bigrams(counts: Counter[Ngram]) -> int:
    """Number of bigrams: the length that the reference implementation compares."""
    return sum(count for ngram, count in counts.items() if len(ngram) == 2)
