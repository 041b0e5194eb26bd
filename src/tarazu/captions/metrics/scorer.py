"""All scores of a set of captions, as metrics.json holds them: BLEU, CIDEr, ROUGE-L, METEOR, x100.

The 95% intervals are percentile bootstraps over images: a resample draws as many images as there
are, with replacement. CIDEr's document frequencies stay those of all images, because they belong to
the metric and not to the sample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tarazu.captions.metrics import meteor
from tarazu.captions.metrics.bleu import References, bleu, brevity_penalty, mean_precisions
from tarazu.captions.metrics.cider import Cider
from tarazu.captions.metrics.ptb_tokenizer import NAME as TOKENIZER
from tarazu.captions.metrics.ptb_tokenizer import ptb_like
from tarazu.captions.metrics.rouge import rouge_l
from tarazu.errors import UserError

RESAMPLES = 1000


class Scorer:
    """References prepared once, for scoring several sets of captions of the same images.

    Args:
        references: raw captions by image.

    Raises:
        UserError: an image has no reference.
    """

    def __init__(self, references: Mapping[str, Sequence[str]]):
        without = [image for image, captions in references.items() if not captions]
        if without or not references:
            raise UserError(
                "no references to score against",
                location=", ".join(without[:3]),
                hint="leave such images out",
            )
        self.tokens = {
            image: [ptb_like(caption) for caption in captions]
            for image, captions in references.items()
        }
        self.bleu = {image: References(tokens) for image, tokens in self.tokens.items()}
        self.cider = Cider(references)

    def counts(self, candidates: Mapping[str, str]) -> np.ndarray:
        """Return BLEU's ten counts of each candidate, (images, 10).

        Raises:
            UserError: there is no candidate, or one of an unknown image.
        """
        self._check(candidates)
        counts = [self.bleu[image].counts(ptb_like(text)) for image, text in candidates.items()]
        return np.array(counts, dtype=float)

    def validation_scores(self, candidates: Mapping[str, str]) -> dict[str, float]:
        """Return corpus BLEU-4 and CIDEr, x100, for validation after every epoch.

        Raises:
            UserError: there is no candidate, or one of an unknown image.
        """
        return {
            "bleu4": float(100 * bleu(self.counts(candidates).sum(0))[-1]),
            "cider": float(100 * self.cider.scores(candidates).mean()),
        }

    def per_image(self, candidates: Mapping[str, str]) -> dict[str, dict[str, float]]:
        """Return each image's own BLEU-4 and CIDEr, x100.

        BLEU-4 of one image is the COCO scorer's: near 0 without a common 4-gram.

        Raises:
            UserError: there is no candidate, or one of an unknown image.
        """
        bleu4 = bleu(self.counts(candidates))[:, -1]
        ciders = self.cider.scores(candidates)
        return {
            image: {"bleu4": float(100 * b), "cider": float(100 * c)}
            for image, b, c in zip(candidates, bleu4, ciders, strict=True)
        }

    def score(
        self, candidates: Mapping[str, str], with_meteor: bool = True, seed: int = 0
    ) -> dict[str, Any]:
        """Return every score of one set of captions: the form S of docs/run_folder.md.

        Args:
            candidates: one raw caption by image.
            with_meteor: compute METEOR where Java is installed; its value is None otherwise.
            seed: of the bootstrap intervals.

        Raises:
            UserError: there is no candidate, or one of an unknown image.
        """
        counts, ciders = self.counts(candidates), self.cider.scores(candidates)
        total = counts.sum(0)
        tokens = {image: ptb_like(text) for image, text in candidates.items()}
        rouges = [rouge_l(words, self.tokens[image]) for image, words in tokens.items()]
        meteor_score = None
        if with_meteor and meteor.is_available():
            references = [self.tokens[image] for image in candidates]
            meteor_score = 100 * meteor.meteor(list(tokens.values()), references)[0]
        return {
            "bleu": [float(b) for b in 100 * bleu(total)],
            "bleu_no_penalty": [float(b) for b in 100 * mean_precisions(total)],
            "brevity_penalty": float(brevity_penalty(total)),
            "cider": float(100 * ciders.mean()),
            "rouge_l": float(100 * np.mean(rouges)),
            "meteor": meteor_score,
            "intervals": intervals(counts, ciders, seed),
            "images": len(counts),
            "tokenizer": TOKENIZER,
        }

    def _check(self, candidates: Mapping[str, str]) -> None:
        """Raise `UserError` where there is nothing to score or an image is unknown."""
        unknown = [image for image in candidates if image not in self.tokens]
        if unknown:
            raise UserError(
                f"{len(unknown)} captions are of images without references",
                location=", ".join(unknown[:3]),
                hint="caption the images of the split that is scored",
            )
        if not candidates:
            raise UserError(
                "no captions to score", hint="caption the images of the split that is scored"
            )


def intervals(
    counts: np.ndarray, ciders: np.ndarray, seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, list[float]]:
    """Return 95% bootstrap intervals of corpus BLEU-4 and CIDEr, x100.

    Args:
        counts: BLEU's counts by image, (images, 10).
        ciders: CIDEr by image, (images,).
        seed: of the resamples.
        resamples: number of resamples.
    """
    images = len(counts)
    # How often each image occurs in each resample: (resamples, images).
    draws = np.random.default_rng(seed).multinomial(
        images, np.full(images, 1 / images), size=resamples
    )
    weights = draws.astype(np.float64)
    samples = {
        "bleu4": 100 * bleu(weights @ counts)[:, -1],
        "cider": 100 * (weights @ ciders) / images,
    }
    return {
        name: [float(x) for x in np.percentile(values, [2.5, 97.5])]
        for name, values in samples.items()
    }


def score(
    candidates: Mapping[str, str], references: Mapping[str, Sequence[str]], with_meteor: bool = True
) -> dict[str, Any]:
    """Return `Scorer.score` against the references of exactly the candidates' images.

    These references give CIDEr's document frequencies too.

    Raises:
        UserError: an image has no references.
    """
    return Scorer(_restrict(references, candidates)).score(candidates, with_meteor)


def per_image(
    candidates: Mapping[str, str], references: Mapping[str, Sequence[str]]
) -> dict[str, dict[str, float]]:
    """Return `Scorer.per_image` against the references of exactly the candidates' images.

    Raises:
        UserError: an image has no references.
    """
    return Scorer(_restrict(references, candidates)).per_image(candidates)


def _restrict(
    references: Mapping[str, Sequence[str]], candidates: Mapping[str, str]
) -> dict[str, Sequence[str]]:
    """The references of the candidates' images; an image without any has an empty list."""
    return {image: references.get(image, ()) for image in candidates}
