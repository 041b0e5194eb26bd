"""Do the scores agree with people? Kendall's tau of each metric with Flickr8k's expert judgements.

    python -m tarazu.captions.evaluation.human_correlation FOLDER [--json FILE] [--no-meteor]

FOLDER holds Flickr8k.token.txt and ExpertAnnotations.txt, plain or gzipped. Three experts gave each pair of an image and
a caption (mostly another image's) 1 to 4 points (Hodosh et al. 2013). The protocol is that of the CLIPScore paper (Hessel
et al. 2021, appendix A), which follows SPICE: each expert's score is one data point, the figure is tau-c, the references
are the image's own five captions, and pairs whose caption is one of these are left out.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tarazu.captions.metrics import meteor
from tarazu.captions.metrics.bleu import References, bleu
from tarazu.captions.metrics.cider import Cider
from tarazu.captions.metrics.ptb_tokenizer import NAME as TOKENIZER
from tarazu.captions.metrics.ptb_tokenizer import ptb_like
from tarazu.captions.metrics.rouge import rouge_l
from tarazu.errors import TarazuError, UserError
from tarazu.storage.atomic_io import write_json

# Tau-c x100, Flickr8K-Expert column of table 1 in Hessel et al. 2021. SPICE and the CLIP scores are not computed here.
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


@dataclass(frozen=True)
class RatedCaption:
    """One caption of one image, and what the three experts gave it."""

    image: str
    caption: str
    points: tuple[int, ...]


def read_folder(folder: Path) -> tuple[list[RatedCaption], dict[str, list[str]], int]:
    """The pairs, the references by image, and how many pairs were left out. Raises `UserError`, naming file and line."""
    by_id = read_tokens(find(folder, "Flickr8k.token.txt"))
    references: dict[str, list[str]] = {}
    for name, caption in by_id.items():
        references.setdefault(name.rpartition("#")[0], []).append(caption)
    path = find(folder, "ExpertAnnotations.txt")
    judged, left_out = [], 0
    for number, line in enumerate(read_text(path).splitlines(), 1):
        pair = parse(line, by_id, references, f"{path}:{number}")
        if pair.caption in references[pair.image]:
            left_out += 1
        else:
            judged.append(pair)
    if not judged:
        raise UserError("no judgements to compare with", location=str(path))
    used = {pair.image for pair in judged}
    return judged, {image: references[image] for image in sorted(used)}, left_out


def parse(
    line: str, by_id: dict[str, str], references: dict[str, list[str]], where: str
) -> RatedCaption:
    """One line: image, caption id, three points."""
    parts = line.split("\t")
    if len(parts) != 2 + EXPERTS or not all(
        part.strip() in {"1", "2", "3", "4"} for part in parts[2:]
    ):
        raise UserError(
            "expected image, caption id and three points from 1 to 4, between tabs", location=where
        )
    image, caption_id = parts[:2]
    if image not in references or caption_id not in by_id:
        raise UserError("an image or caption that Flickr8k.token.txt does not have", location=where)
    return RatedCaption(image, by_id[caption_id], tuple(int(part) for part in parts[2:]))


def read_tokens(path: Path) -> dict[str, str]:
    """Captions by id, `image#n`."""
    rows = [line.partition("\t") for line in read_text(path).splitlines() if line.strip()]
    if not all(tab and "#" in name for name, tab, _ in rows):
        raise UserError("expected lines of image#n, a tab and a caption", location=str(path))
    return {name: caption.strip() for name, _, caption in rows}


def find(folder: Path, name: str) -> Path:
    """`name` in `folder`, plain or gzipped."""
    found = [path for path in (folder / name, folder / f"{name}.gz") if path.is_file()]
    if not found:
        todo = "give the folder of Flickr8k's text files"
        raise UserError(f"no {name} (nor {name}.gz) here", location=str(folder), hint=todo)
    return found[0]


def read_text(path: Path) -> str:
    """A text file, gzipped or not."""
    from tarazu.captions.data.flickr8k import (
        read_text as read,  # the one reader with limits and errors
    )

    return read(path)


def metric_scores(
    judged: Sequence[RatedCaption], references: dict[str, list[str]], with_meteor: bool = True
) -> dict:
    """Each metric's score of each pair (pairs,), sentence by sentence."""
    tokens = {
        image: [ptb_like(caption) for caption in captions] for image, captions in references.items()
    }
    candidates = [ptb_like(pair.caption) for pair in judged]
    kept = {image: References(captions) for image, captions in tokens.items()}
    pairs = [(pair.image, words) for pair, words in zip(judged, candidates, strict=True)]
    bleus = bleu(np.array([kept[image].counts(words) for image, words in pairs]))
    scores = {f"bleu{n}": bleus[:, n - 1] for n in (1, 2, 3, 4)}
    scores["rouge_l"] = np.array([rouge_l(words, tokens[image]) for image, words in pairs])
    if with_meteor and meteor.jar():
        scores["meteor"] = np.array(
            meteor.meteor(candidates, [tokens[image] for image, _ in pairs])[1]
        )
    # As in that protocol the pairs are CIDEr's documents: an image counts as often as it was judged.
    by_pair = Cider({str(i): references[pair.image] for i, pair in enumerate(judged)})
    scores["cider"] = by_pair.scores({str(i): pair.caption for i, pair in enumerate(judged)})
    return scores


def kendall(a: np.ndarray, b: np.ndarray, variant: str) -> float:
    """Kendall's tau, x100. Variant "c" of Stuart suits scales of different lengths, "b" corrects for ties."""
    try:
        from scipy.stats import kendalltau
    except ImportError:
        raise TarazuError("Kendall's tau needs scipy", hint="pip install scipy") from None
    return float(100 * kendalltau(a, b, variant=variant).statistic)


def agreement(scores: np.ndarray, judged: Sequence[RatedCaption]) -> dict[str, float]:
    """Kendall's tau-c and tau-b, x100, of one score per pair (pairs,) with every expert's points."""
    points = np.array([pair.points for pair in judged]).ravel()
    return {
        f"tau_{variant}": kendall(np.repeat(scores, EXPERTS), points, variant) for variant in "cb"
    }


def experts_agreement(judged: Sequence[RatedCaption]) -> float:
    """Mean tau-b (x100) of one expert with another: how well people agree among themselves."""
    points = np.array([pair.points for pair in judged])
    return float(
        np.mean(
            [kendall(points[:, a], points[:, b], "b") for a in range(EXPERTS) for b in range(a)]
        )
    )


def compare(folder: Path, with_meteor: bool = True) -> dict:
    """The whole comparison, JSON-able: {"metrics": {name: {"tau_c", "tau_b", "published_tau_c"}}, counts, how}."""
    judged, references, left_out = read_folder(folder)
    scores = metric_scores(judged, references, with_meteor)
    return {
        "metrics": {
            name: {**agreement(values, judged), "published_tau_c": PUBLISHED.get(name)}
            for name, values in scores.items()
        },
        "published_only": {name: value for name, value in PUBLISHED.items() if name not in scores},
        "experts_tau_b": experts_agreement(judged),
        "pairs": len(judged),
        "pairs_left_out": left_out,
        "judgements": EXPERTS * len(judged),
        "images": len(references),
        "tokenizer": TOKENIZER,
        "how": "python -m tarazu.captions.evaluation.human_correlation FOLDER --json FILE; sentence scores against the image's own five "
        "captions, each expert's points one data point, pairs whose caption is one of the image's own left out, x100",
        "published_source": "Hessel et al. 2021, CLIPScore, table 1 (Flickr8K-Expert, tau-c)",
    }


def table(result: dict) -> str:
    """`compare`'s result as lines for a terminal."""
    lines = [f"{'metric':<10}{'tau-c':>8}{'published':>11}{'tau-b':>8}"]
    for name, row in result["metrics"].items():
        published = "-" if row["published_tau_c"] is None else f"{row['published_tau_c']:.1f}"
        lines.append(f"{name:<10}{row['tau_c']:>8.1f}{published:>11}{row['tau_b']:>8.1f}")
    lines += [
        f"{name:<10}{'-':>8}{value:>11.1f}{'-':>8}"
        for name, value in result["published_only"].items()
    ]
    left_out = f"{result['pairs_left_out']} pairs left out (the image's own caption)"
    lines.append(f"{result['judgements']} judgements of {result['pairs']} pairs; {left_out}")
    lines.append(f"one expert with another: tau-b {result['experts_tau_b']:.1f}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tarazu.captions.evaluation.human_correlation",
        description=__doc__.split("\n", 1)[0],
    )
    parser.add_argument(
        "folder", type=Path, help="with Flickr8k.token.txt and ExpertAnnotations.txt, or their .gz"
    )
    parser.add_argument("--json", type=Path, help="also write the result here")
    parser.add_argument(
        "--no-meteor", action="store_true", help="leave METEOR out, though Java is there"
    )
    options = parser.parse_args(arguments)
    try:
        result = compare(options.folder, with_meteor=not options.no_meteor)
        if options.json:
            write_json(options.json, result)
    except TarazuError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(table(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
