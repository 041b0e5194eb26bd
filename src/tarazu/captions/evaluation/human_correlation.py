"""Correlation of the metrics with people: Kendall's tau with Flickr8k's expert judgements.

    python -m tarazu.captions.evaluation.human_correlation FOLDER [--json FILE] [--no-meteor]

FOLDER has Flickr8k.token.txt and ExpertAnnotations.txt, plain or gzipped. Three experts gave each
pair of an image and a caption (mostly of another image) 1 to 4 points (Hodosh et al. 2013). The
protocol is that of the CLIPScore paper (Hessel et al. 2021, appendix A), which follows SPICE: each
expert's score is one data point, the correlation is tau-c, the references are the image's own five
captions, and pairs whose caption is one of these are left out.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import kendalltau

from tarazu.captions.data.flickr8k import read_text
from tarazu.captions.evaluation.flickr8k_text import find_file, group_by_image, read_captions
from tarazu.captions.metrics import meteor
from tarazu.captions.metrics.bleu import ORDERS, References, bleu
from tarazu.captions.metrics.cider import Cider
from tarazu.captions.metrics.ptb_tokenizer import NAME as TOKENIZER
from tarazu.captions.metrics.ptb_tokenizer import ptb_like
from tarazu.captions.metrics.rouge import rouge_l
from tarazu.errors import TarazuError, UserError
from tarazu.storage.atomic_io import write_json

# Tau-c x100, column Flickr8K-Expert of table 1 in Hessel et al. 2021. SPICE and the CLIP scores are
# not computed here.
PUBLISHED = {
    "bleu1": 32.3,
    "bleu4": 30.8,
    "rouge_l": 32.3,
    "meteor": 41.8,
    "cider": 43.9,
    "spice": 44.9,
    "clip_s": 51.2,
    "ref_clip_s": 53.0,
}
EXPERTS = 3
PROTOCOL = (
    "python -m tarazu.captions.evaluation.human_correlation FOLDER --json FILE; sentence scores "
    "against the image's own five captions, each expert's points one data point, pairs whose "
    "caption is one of the image's own left out, x100"
)


@dataclass(frozen=True)
class RatedCaption:
    """A caption of an image with the three experts' points, 1 to 4."""

    image: str
    caption: str
    points: tuple[int, ...]


def read_folder(folder: Path) -> tuple[list[RatedCaption], dict[str, list[str]], int]:
    """Read the judgements.

    Returns:
        The pairs, the references by image, and how many pairs were left out.

    Raises:
        UserError: a file is missing or a line has another form.
    """
    captions = read_captions(folder)
    references = group_by_image(captions)
    path = find_file(folder, "ExpertAnnotations.txt")
    rated, left_out = [], 0
    for number, line in enumerate(read_text(path).splitlines(), 1):
        pair = _parse(line, captions, references, f"{path}:{number}")
        if pair.caption in references[pair.image]:
            left_out += 1
        else:
            rated.append(pair)
    if not rated:
        raise UserError("no judgements to compare with", location=str(path))
    used = {pair.image for pair in rated}
    return rated, {image: references[image] for image in sorted(used)}, left_out


def _parse(
    line: str, captions: dict[str, str], references: dict[str, list[str]], location: str
) -> RatedCaption:
    """One line: image, caption id, three points."""
    parts = line.split("\t")
    points = [part.strip() for part in parts[2:]]
    if len(points) != EXPERTS or not set(points) <= {"1", "2", "3", "4"}:
        raise UserError(
            "expected image, caption id and three points from 1 to 4, between tabs",
            location=location,
        )
    image, caption_id = parts[:2]
    if image not in references or caption_id not in captions:
        raise UserError(
            "an image or caption that Flickr8k.token.txt does not have", location=location
        )
    return RatedCaption(image, captions[caption_id], tuple(map(int, points)))


def metric_scores(
    rated: Sequence[RatedCaption], references: dict[str, list[str]], with_meteor: bool = True
) -> dict[str, np.ndarray]:
    """Return each metric's score of every pair, (pairs,)."""
    tokens = {
        image: [ptb_like(caption) for caption in captions] for image, captions in references.items()
    }
    candidates = [ptb_like(pair.caption) for pair in rated]
    pairs = [(pair.image, words) for pair, words in zip(rated, candidates, strict=True)]
    bleu_references = {image: References(captions) for image, captions in tokens.items()}
    bleus = bleu(np.array([bleu_references[image].counts(words) for image, words in pairs]))
    scores = {f"bleu{n}": bleus[:, n - 1] for n in range(1, ORDERS + 1)}
    scores["rouge_l"] = np.array([rouge_l(words, tokens[image]) for image, words in pairs])
    if with_meteor and meteor.is_available():
        _, by_pair = meteor.meteor(candidates, [tokens[image] for image, _ in pairs])
        scores["meteor"] = np.array(by_pair)
    # In this protocol the pairs are CIDEr's documents: an image counts as often as it was judged.
    cider = Cider({str(i): references[pair.image] for i, pair in enumerate(rated)})
    scores["cider"] = cider.scores({str(i): pair.caption for i, pair in enumerate(rated)})
    return scores


def kendall_tau(a: np.ndarray, b: np.ndarray, variant: str) -> float:
    """Return Kendall's tau, x100, of two rankings (n,).

    Args:
        a: scores, (n,).
        b: scores, (n,).
        variant: "c" (Stuart) suits scales of different lengths, "b" corrects for ties.
    """
    return float(100 * kendalltau(a, b, variant=variant).statistic)


def agreement(scores: np.ndarray, rated: Sequence[RatedCaption]) -> dict[str, float]:
    """Return tau-c and tau-b, x100, of scores (pairs,) with every expert's points."""
    points = np.array([pair.points for pair in rated]).ravel()
    repeated = np.repeat(scores, EXPERTS)
    return {f"tau_{variant}": kendall_tau(repeated, points, variant) for variant in "cb"}


def experts_agreement(rated: Sequence[RatedCaption]) -> float:
    """Return the mean tau-b, x100, of one expert with another."""
    points = np.array([pair.points for pair in rated])
    taus = [kendall_tau(points[:, a], points[:, b], "b") for a in range(EXPERTS) for b in range(a)]
    return float(np.mean(taus))


def compare(folder: Path, with_meteor: bool = True) -> dict[str, Any]:
    """Compare all metrics with the judgements of a folder.

    Returns:
        JSON-able: "metrics" {name: {"tau_c", "tau_b", "published_tau_c"}}, counts and protocol.

    Raises:
        UserError: a file is missing or a line has another form.
    """
    rated, references, left_out = read_folder(folder)
    scores = metric_scores(rated, references, with_meteor)
    return {
        "metrics": {
            name: {**agreement(values, rated), "published_tau_c": PUBLISHED.get(name)}
            for name, values in scores.items()
        },
        "published_only": {name: value for name, value in PUBLISHED.items() if name not in scores},
        "experts_tau_b": experts_agreement(rated),
        "pairs": len(rated),
        "pairs_left_out": left_out,
        "judgements": EXPERTS * len(rated),
        "images": len(references),
        "tokenizer": TOKENIZER,
        "protocol": PROTOCOL,
        "published_source": "Hessel et al. 2021, CLIPScore, table 1 (Flickr8K-Expert, tau-c)",
    }


def _table(result: dict[str, Any]) -> str:
    """`compare`'s result as lines for a terminal."""
    lines = [f"{'metric':<10}{'tau-c':>8}{'published':>11}{'tau-b':>8}"]
    for name, row in result["metrics"].items():
        published = "-" if row["published_tau_c"] is None else f"{row['published_tau_c']:.1f}"
        lines.append(f"{name:<10}{row['tau_c']:>8.1f}{published:>11}{row['tau_b']:>8.1f}")
    for name, value in result["published_only"].items():
        lines.append(f"{name:<10}{'-':>8}{value:>11.1f}{'-':>8}")
    left_out = f"{result['pairs_left_out']} pairs left out (the image's own caption)"
    lines.append(f"{result['judgements']} judgements of {result['pairs']} pairs; {left_out}")
    lines.append(f"one expert with another: tau-b {result['experts_tau_b']:.1f}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tarazu.captions.evaluation.human_correlation",
        description=__doc__.split("\n", 1)[0],
    )
    parser.add_argument(
        "folder", type=Path, help="has Flickr8k.token.txt and ExpertAnnotations.txt, or their .gz"
    )
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    parser.add_argument("--no-meteor", action="store_true", help="leave out METEOR")
    options = parser.parse_args(arguments)
    try:
        result = compare(options.folder, with_meteor=not options.no_meteor)
        if options.json:
            write_json(options.json, result)
    except TarazuError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(_table(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
