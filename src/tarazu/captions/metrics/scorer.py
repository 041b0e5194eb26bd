"""All scores of a set of captions, as `metrics.json` holds them, x100: BLEU, CIDEr, ROUGE-L, METEOR, with intervals.

Intervals are percentile bootstraps over images (95%): a resample draws as many images as there are, with replacement.
CIDEr's document frequencies stay those of the whole split, as they belong to the metric, not to the sample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tarazu.captions.metrics import meteor
from tarazu.captions.metrics.bleu import References, bleu, brevity_penalty, precisions_mean
from tarazu.captions.metrics.cider import Cider
from tarazu.captions.metrics.ptb_tokenizer import NAME as TOKENIZER
from tarazu.captions.metrics.ptb_tokenizer import ptb_like
from tarazu.captions.metrics.rouge import rouge_l
from tarazu.errors import UserError

RESAMPLES = 1000


class Scorer:
    """References prepared once, for scoring several sets of captions of the same images.

    Args:
        references: raw captions by image. Raises `UserError` for an image without any.
    """

    def __init__(self, references: Mapping[str, Sequence[str]]):
        bare = [image for image, captions in references.items() if not captions]
        if bare or not references:
            raise UserError(
                "no references to score against",
                location=", ".join(bare[:3]),
                hint="leave such images out",
            )
        self.tokens = {
            image: [ptb_like(caption) for caption in captions]
            for image, captions in references.items()
        }
        self.bleu = {image: References(tokens) for image, tokens in self.tokens.items()}
        self.cider = Cider(references)

    def counts(self, candidates: Mapping[str, str]) -> np.ndarray:
        """BLEU's ten counts per candidate. (images, 10)"""
        self.check(candidates)
        return np.array(
            [self.bleu[image].counts(ptb_like(text)) for image, text in candidates.items()],
            dtype=float,
        )

    def validation_scores(self, candidates: Mapping[str, str]) -> dict[str, float]:
        """Corpus BLEU-4 and CIDEr (x100), for validation after every epoch."""
        bleus = bleu(self.counts(candidates).sum(0))
        return {
            "bleu4": float(100 * bleus[-1]),
            "cider": float(100 * self.cider.scores(candidates).mean()),
        }

    def per_image(self, candidates: Mapping[str, str]) -> dict[str, dict[str, float]]:
        """Each image's own BLEU-4 (as the COCO scorer has it, near 0 without a common 4-gram) and CIDEr, x100."""
        rows = zip(
            candidates,
            bleu(self.counts(candidates))[:, -1],
            self.cider.scores(candidates),
            strict=True,
        )
        return {image: {"bleu4": float(100 * b), "cider": float(100 * c)} for image, b, c in rows}

    def score(self, candidates: Mapping[str, str], with_meteor: bool = True, seed: int = 0) -> dict:
        """Every score of one set of captions, in the form S of docs/run_folder.md, and the tokenizer's name."""
        counts, ciders = self.counts(candidates), self.cider.scores(candidates)
        total = counts.sum(0)
        rouges = [rouge_l(ptb_like(text), self.tokens[image]) for image, text in candidates.items()]
        return {
            "bleu": [float(b) for b in 100 * bleu(total)],
            "bleu_no_penalty": [float(b) for b in 100 * precisions_mean(total)],
            "brevity_penalty": float(brevity_penalty(total)),
            "cider": float(100 * ciders.mean()),
            "rouge_l": float(100 * np.mean(rouges)),
            "meteor": self.meteor(candidates) if with_meteor and meteor.jar() else None,
            "intervals": intervals(counts, ciders, seed),
            "images": len(counts),
            "tokenizer": TOKENIZER,
        }

    def meteor(self, candidates: Mapping[str, str]) -> float:
        """Corpus METEOR, x100."""
        texts = [ptb_like(text) for text in candidates.values()]
        return 100 * meteor.meteor(texts, [self.tokens[image] for image in candidates])[0]

    def check(self, candidates: Mapping[str, str]) -> None:
        """Raises `UserError` where there is nothing to score, or an image is unknown."""
        unknown = [image for image in candidates if image not in self.tokens]
        if unknown or not candidates:
            what = (
                f"{len(unknown)} captions are of images without references"
                if unknown
                else "no captions to score"
            )
            raise UserError(
                what,
                location=", ".join(unknown[:3]),
                hint="caption the images of the split that is scored",
            )


def intervals(
    counts: np.ndarray, ciders: np.ndarray, seed: int = 0, resamples: int = RESAMPLES
) -> dict:
    """95% bootstrap intervals of corpus BLEU-4 and CIDEr (x100) from per-image counts (n, 10) and CIDEr (n,)."""
    n = len(counts)
    drawn = (
        np.random.default_rng(seed)
        .multinomial(n, np.full(n, 1 / n), size=resamples)
        .astype(np.float64)
    )
    figures = {"bleu4": 100 * bleu(drawn @ counts)[:, -1], "cider": 100 * (drawn @ ciders) / n}
    return {
        name: [float(x) for x in np.percentile(values, [2.5, 97.5])]
        for name, values in figures.items()
    }


def score(
    candidates: Mapping[str, str], references: Mapping[str, Sequence[str]], with_meteor: bool = True
) -> dict:
    """`Scorer.score` of `candidates` against the references of exactly those images (they give CIDEr's frequencies)."""
    return Scorer(of_images(references, candidates)).score(candidates, with_meteor)


def per_image(
    candidates: Mapping[str, str], references: Mapping[str, Sequence[str]]
) -> dict[str, dict[str, float]]:
    """`Scorer.per_image` of `candidates` against the references of exactly those images."""
    return Scorer(of_images(references, candidates)).per_image(candidates)


def of_images(
    references: Mapping[str, Sequence[str]], images: Mapping[str, str]
) -> dict[str, Sequence[str]]:
    """The references of `images`. Raises `UserError` for an image that has none."""
    return {image: references.get(image, ()) for image in images}
