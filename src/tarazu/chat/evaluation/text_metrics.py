"""Scores of written answers: likeness to a reference, and the faults that need none.

chrF from sacrebleu (Popović 2015); ROUGE-L (Lin 2004) over Persian words, because rouge-score's tokenizer drops every
letter that is not Latin.
"""

from __future__ import annotations

from collections.abc import Sequence

from sacrebleu.metrics import CHRF

from tarazu.chat.data import persian

CHRF_SCORER = CHRF()
NGRAM = 4


def chrf(output: str, reference: str) -> float:
    """Sentence chrF2, 0..100."""
    return CHRF_SCORER.sentence_score(
        persian.normalize(output)[0], [persian.normalize(reference)[0]]
    ).score


def rouge_l(output: str, reference: str) -> float:
    """F1 of the longest common subsequence of words, 0..100."""
    ours, theirs = (persian.normalize_for_matching(text).split() for text in (output, reference))
    common = _common(ours, theirs)
    if not common:
        return 0.0
    precision, recall = common / len(ours), common / len(theirs)
    return 200 * precision * recall / (precision + recall)


def repetition(output: str) -> float:
    """Share of the answer's word 4-grams that stand in it a second time; a short loop of words counts too."""
    words = persian.normalize_for_matching(output).split()
    grams = [tuple(words[i : i + NGRAM]) for i in range(len(words) - NGRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def wrong_script(output: str, expected: str = "fa") -> float:
    """Share of letters that are not of the expected script ("fa": Arabic letters, "en": Latin); 0 without letters."""
    shares = persian.letter_counts(output)
    right = shares.arabic if expected == "fa" else shares.latin
    return 1 - right / shares.letters if shares.letters else 0.0


def prompt_copy_ratio(output: str, question: str) -> float:
    """How much of the answer is the question said again: the longest run of the answer's words that stands in it, as a share."""
    ours, theirs = (
        persian.normalize_for_matching(output).split(),
        persian.normalize_for_matching(question).split(),
    )
    if not ours:
        return 0.0
    best, row = 0, [0] * (len(theirs) + 1)
    for word in ours:
        previous = 0
        for j, other in enumerate(theirs, 1):
            previous, row[j] = row[j], previous + 1 if word == other else 0
            best = max(best, row[j])
    return best / len(ours) if best >= NGRAM else 0.0  # a few words in common are no echo


def score(
    output: str, question: str, reference: str | None, expected: str = "fa"
) -> dict[str, float | None]:
    """All scores of one answer."""
    return {
        "chrf": None if reference is None else chrf(output, reference),
        "rouge_l": None if reference is None else rouge_l(output, reference),
        "repetition": repetition(output),
        "wrong_script": wrong_script(output, expected),
        "prompt_copy": prompt_copy_ratio(output, question),
    }


def aggregate(samples: Sequence[dict]) -> dict:
    """Means over answers, as `metrics.json` holds them. Rates are 0..1: an answer repeats when a fifth of it does."""

    def mean(values: list) -> float | None:
        known = [float(v) for v in values if v is not None]
        return sum(known) / len(known) if known else None

    scores = [sample["scores"] for sample in samples]
    checks = [mean(list(sample["checks"].values())) for sample in samples if sample["checks"]]
    return {
        "n": len(samples),
        "chrf": mean([s["chrf"] for s in scores]),
        "rouge_l": mean([s["rouge_l"] for s in scores]),
        "repetition": mean([s["repetition"] > 0.2 for s in scores]),
        "wrong_script": mean([s["wrong_script"] > 0.5 for s in scores]),
        "unfinished": mean([not sample["finished"] for sample in samples]),
        "prompt_copy": mean([s["prompt_copy"] > 0.5 for s in scores]),
        "answer_words": mean([len(persian.words(sample["output"])) for sample in samples]),
        "checks_passed": mean(checks),
    }


def weighted_mean(parts: Sequence[dict], name: str) -> float | None:
    """A mean of `aggregate` over several groups together, each weighing as many answers as it has."""
    known = [(part["n"], part[name]) for part in parts if part[name] is not None]
    return sum(n * value for n, value in known) / sum(n for n, _ in known) if known else None


def _common(a: list[str], b: list[str]) -> int:
    """Length of the longest common subsequence, a word of `b` at a time and all of `a` in one number's bits (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for i, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << i
    everything = row = (1 << len(a)) - 1
    for word in b:
        hit = row & places.get(word, 0)
        row = (row + hit | row - hit) & everything
    return len(a) - row.bit_count()
