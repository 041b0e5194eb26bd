"""Three baselines that give a score its meaning: a human, a constant and a shuffled caption.

"human" scores one reference against the others, "constant" gives every image the same caption,
"shuffled" gives each image a caption of another one. A model between "constant" and "human" uses
the images; one near "constant" has learnt only the language of captions.

    python -m tarazu.captions.evaluation.baselines FOLDER [--json FILE]

computes them on Flickr8k's official test images.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tarazu.captions.data.flickr8k import LISTS, read_text
from tarazu.captions.evaluation.error_analysis import analyse
from tarazu.captions.evaluation.flickr8k_text import find_file, group_by_image, read_captions
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
) -> dict[str, Any]:
    """Score the three baselines.

    Args:
        references: raw captions of the split by image; "human" uses the images with two or more.
        training_captions: source of the constant caption; the references if empty.
        constant: a constant caption to use instead.
        seed: of the random choices.
        with_meteor: compute METEOR where Java is installed.

    Returns:
        "human", "constant" (with its "caption") and "shuffled", each in the form S of
        docs/run_folder.md.

    Raises:
        UserError: no image has two captions.
    """
    captions = [caption for captions in references.values() for caption in captions]
    constant = constant or medoid_caption(training_captions or captions)
    human_captions, other_captions = human(references, seed)
    constant_captions = dict.fromkeys(references, constant)
    return {
        "human": score(human_captions, other_captions, with_meteor),
        "constant": {**score(constant_captions, references, with_meteor), "caption": constant},
        "shuffled": score(shuffled(references, seed), references, with_meteor),
    }


def human(references: Captions, seed: int = 0) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Draw one caption of each image, and return it and the image's other captions.

    Raises:
        UserError: no image has two captions.
    """
    rng = random.Random(seed)
    drawn, others = {}, {}
    for image, captions in references.items():
        if len(captions) > 1:
            index = rng.randrange(len(captions))
            drawn[image] = captions[index]
            others[image] = [caption for i, caption in enumerate(captions) if i != index]
    if not drawn:
        raise UserError(
            "no image has two captions", hint="the human baseline needs two captions of an image"
        )
    return drawn, others


def shuffled(references: Captions, seed: int = 0) -> dict[str, str]:
    """Give each image a caption of another one: the images form a random cycle."""
    rng = random.Random(seed)
    images = list(references)
    rng.shuffle(images)
    pairs = zip(images, images[1:] + images[:1], strict=True)
    return {image: rng.choice(references[other]) for image, other in pairs}


def medoid_caption(captions: Iterable[str]) -> str:
    """Return the caption nearest to all others: largest cosine with their mean tf-idf vector.

    Without the idf, a caption of many function words ("a ... with a ... in a ...") would win.
    """
    texts = list(dict.fromkeys(captions))
    vectors = _unit_vectors([ngrams(ptb_like(text)) for text in texts])
    mean: Counter = Counter()
    for vector in vectors:
        mean.update(vector)
    similarities = [
        sum(weight * mean[ngram] for ngram, weight in vector.items()) for vector in vectors
    ]
    return texts[max(range(len(texts)), key=similarities.__getitem__)]


def _unit_vectors(counts: list[Counter]) -> list[dict]:
    """tf-idf weights of n-gram counts, normalised to length 1 for each order."""
    frequency = Counter(ngram for vector in counts for ngram in vector)
    unit_vectors = []
    for vector in counts:
        weights = {
            ngram: count * math.log(len(counts) / frequency[ngram])
            for ngram, count in vector.items()
        }
        norms = [
            math.sqrt(sum(w**2 for ngram, w in weights.items() if len(ngram) == order))
            for order in range(ORDERS + 1)
        ]
        unit_vectors.append({ngram: w / norms[len(ngram)] for ngram, w in weights.items() if w})
    return unit_vectors


def flickr8k_baselines(folder: Path) -> dict[str, Any]:
    """Compute the baselines of Flickr8k's official test split, and the errors of human captions.

    Args:
        folder: has Flickr8k.token.txt and the split lists.

    Raises:
        UserError: a file is missing or a line has another form.
    """
    references = group_by_image(read_captions(folder))
    names = {
        split: read_text(find_file(folder, LISTS[split])).split() for split in ("train", "test")
    }
    test = {image: references.get(image, []) for image in names["test"]}
    training = [caption for image in names["train"] for caption in references.get(image, [])]
    analysis = analyse(*human(test), training)
    errors = {
        key: analysis["errors"][key]
        for key in ("categories", "objects_by_kind", "hallucinated", "missed")
    }
    return {
        **compute_baselines(test, training),
        "human_errors": {**errors, "diversity": analysis["diversity"]},
        "images": len(test),
        "protocol": "python -m tarazu.captions.evaluation.baselines FOLDER --json FILE; human: one "
        "caption drawn per image (seed 0) against the rest",
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tarazu.captions.evaluation.baselines", description=__doc__.split("\n", 1)[0]
    )
    parser.add_argument(
        "folder", type=Path, help="has Flickr8k.token.txt and the official lists, or their .gz"
    )
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    options = parser.parse_args(arguments)
    try:
        result = flickr8k_baselines(options.folder)
        if options.json:
            write_json(options.json, result)
    except TarazuError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    for name in ("human", "constant", "shuffled"):
        scores = result[name]
        bleus = " ".join(f"{b:5.1f}" for b in scores["bleu"])
        print(
            f"{name:<10} BLEU {bleus}   CIDEr {scores['cider']:5.1f}   "
            f"ROUGE-L {scores['rouge_l']:5.1f}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
