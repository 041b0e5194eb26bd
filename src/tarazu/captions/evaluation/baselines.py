"""Three yardsticks that say what a score means on this split: a person, one constant caption, another image's caption.

A model between "constant" and "human" has learnt to look; one near "constant" has learnt the language of captions only.

    python -m tarazu.captions.evaluation.baselines FOLDER [--json FILE]      on Flickr8k's official test images
"""

from __future__ import annotations

import argparse
import math
import random
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tarazu.captions.data.flickr8k import LISTS
from tarazu.captions.evaluation.error_analysis import analyse
from tarazu.captions.evaluation.human_correlation import find, read_text, read_tokens
from tarazu.captions.metrics.bleu import ORDERS, ngrams
from tarazu.captions.metrics.ptb_tokenizer import ptb_like
from tarazu.captions.metrics.scorer import score
from tarazu.errors import TarazuError, UserError
from tarazu.storage.atomic_io import write_json

Captions = Mapping[str, Sequence[str]]


def compute_baselines(
    references: Captions,
    training_captions: Sequence[str] = (),
    constant: str = "",
    seed: int = 0,
    with_meteor: bool = True,
) -> dict:
    """The three, each in the form S of docs/run_folder.md, and what the constant caption was.

    Args:
        references: raw captions of the split by image; `human` uses only images that have at least two.
        training_captions: where the constant caption is chosen from, else from `references`; `constant` gives one.
    """
    constant = constant or medoid_caption(
        training_captions or [c for captions in references.values() for c in captions]
    )
    one, others = human(references, seed)
    return {
        "human": score(one, others, with_meteor),
        "constant": {
            **score(dict.fromkeys(references, constant), references, with_meteor),
            "caption": constant,
        },
        "shuffled": score(shuffled(references, seed), references, with_meteor),
    }


def human(references: Captions, seed: int = 0) -> tuple[dict[str, str], dict[str, list[str]]]:
    """One caption of each image, drawn at random, and the others, which it is scored against."""
    draw = random.Random(seed)
    one, others = {}, {}
    for image, captions in references.items():
        if len(captions) > 1:
            chosen = draw.randrange(len(captions))
            one[image] = captions[chosen]
            others[image] = [caption for i, caption in enumerate(captions) if i != chosen]
    if not one:
        raise UserError(
            "no image has two captions",
            hint="the human yardstick needs at least two captions of an image",
        )
    return one, others


def shuffled(references: Captions, seed: int = 0) -> dict[str, str]:
    """Each image gets a caption of another image: images in one random cycle, so that none keeps its own."""
    draw = random.Random(seed)
    images = list(references)
    draw.shuffle(images)
    return {
        image: draw.choice(references[other])
        for image, other in zip(images, images[1:] + images[:1], strict=True)
    }


def medoid_caption(captions: Iterable[str]) -> str:
    """The caption most like all the others: largest cosine with their mean, in CIDEr's tf-idf vectors of n-grams.

    Without the idf a caption of many small words ("a ... with a ... and a ... in a ...") would win.
    """
    texts = list(dict.fromkeys(captions))
    vectors = unit_vectors([ngrams(ptb_like(text)) for text in texts])
    mean: Counter = Counter()
    for vector in vectors:
        mean.update(vector)
    nearness = [sum(weight * mean[ngram] for ngram, weight in vector.items()) for vector in vectors]
    return texts[max(range(len(texts)), key=nearness.__getitem__)]


def unit_vectors(counts: list[Counter]) -> list[dict]:
    """tf-idf weights, with length 1 for each order of n-grams."""
    frequency = Counter(ngram for vector in counts for ngram in vector)
    unit = []
    for vector in counts:
        weights = {
            ngram: count * math.log(len(counts) / frequency[ngram])
            for ngram, count in vector.items()
        }
        lengths = [
            math.sqrt(sum(w**2 for ngram, w in weights.items() if len(ngram) == n))
            for n in range(ORDERS + 1)
        ]
        unit.append(
            {ngram: weight / lengths[len(ngram)] for ngram, weight in weights.items() if weight}
        )
    return unit


def of_flickr8k(folder: Path) -> dict:
    """The yardsticks of the official test split, and the error analysis of the human captions: the ceiling for a model."""
    references: dict[str, list[str]] = {}
    for name, caption in read_tokens(find(folder, "Flickr8k.token.txt")).items():
        references.setdefault(name.rpartition("#")[0], []).append(caption)
    test = {
        image: references.get(image, []) for image in read_text(find(folder, LISTS["test"])).split()
    }
    training = [
        c
        for image in read_text(find(folder, LISTS["train"])).split()
        for c in references.get(image, [])
    ]
    analysis = analyse(*human(test), training)
    ceiling = {
        name: analysis[name]
        for name in ("categories", "objects_by_kind", "hallucinated", "missed", "diversity")
    }
    how = "python -m tarazu.captions.evaluation.baselines FOLDER --json FILE; human: one caption drawn per image (seed 0) against the rest"
    return {
        **compute_baselines(test, training),
        "human_errors": ceiling,
        "images": len(test),
        "how": how,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tarazu.captions.evaluation.baselines", description=__doc__.split("\n", 1)[0]
    )
    parser.add_argument(
        "folder",
        type=Path,
        help="with Flickr8k.token.txt and the official split lists, or their .gz",
    )
    parser.add_argument("--json", type=Path, help="also write the result here")
    options = parser.parse_args(arguments)
    try:
        result = of_flickr8k(options.folder)
        if options.json:
            write_json(options.json, result)
    except TarazuError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    for name in ("human", "constant", "shuffled"):
        figures = result[name]
        bleus = " ".join(f"{b:5.1f}" for b in figures["bleu"])
        print(
            f"{name:<10} BLEU {bleus}   CIDEr {figures['cider']:5.1f}   ROUGE-L {figures['rouge_l']:5.1f}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
