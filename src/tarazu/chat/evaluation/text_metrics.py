"""Scores of generated answers: similarity to a reference, and faults that need no reference.

chrF is sacrebleu's (Popović 2015, aclanthology.org/W15-3049). ROUGE-L (Lin 2004,
aclanthology.org/W04-1013) is computed here over normalized Persian words. It equals the package
rouge-score with this word splitting; that package's own tokenizer drops every non-Latin letter.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sacrebleu.metrics.chrf import CHRF

from tarazu.chat.data import persian

CHRF_SCORER = CHRF()
NGRAM = 4  # words in an n-gram of `repetition`; shortest copy that `prompt_copy_ratio` counts

# An answer counts as faulty from here on; each threshold is a fraction of the answer.
REPETITION_THRESHOLD = 0.2
WRONG_SCRIPT_THRESHOLD = 0.5
PROMPT_COPY_THRESHOLD = 0.5


def chrf(output: str, reference: str) -> float:
    """Sentence chrF2, 0..100."""
    hypothesis, references = persian.normalize(output)[0], [persian.normalize(reference)[0]]
    return float(CHRF_SCORER.sentence_score(hypothesis, references).score)


def rouge_l(output: str, reference: str) -> float:
    """F1 of the longest common subsequence of words, 0..100."""
    output_words, reference_words = _words(output), _words(reference)
    common = longest_common_subsequence(output_words, reference_words)
    if not common:
        return 0.0
    precision, recall = common / len(output_words), common / len(reference_words)
    return 200 * precision * recall / (precision + recall)


def longest_common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence, by dynamic programming over its table."""
    lengths = [0] * (len(b) + 1)  # [j]: for the words of `a` so far and the first j words of `b`
    for word in a:
        diagonal = 0  # lengths[j - 1] before this word
        for j, other in enumerate(b, 1):
            above = lengths[j]
            lengths[j] = diagonal + 1 if word == other else max(above, lengths[j - 1])
            diagonal = above
    return lengths[-1]


def repetition(output: str) -> float:
    """Fraction of the answer's word 4-grams that occurred in it before, 0..1."""
    words = _words(output)
    ngrams = [tuple(words[i : i + NGRAM]) for i in range(len(words) - NGRAM + 1)]
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def wrong_script(output: str, expected: str = "fa") -> float:
    """Fraction of letters outside the expected script ("fa" or "en"), 0..1; 0 without letters."""
    counts = persian.letter_counts(output)
    right = counts.arabic if expected == "fa" else counts.latin
    return 1 - right / counts.letters if counts.letters else 0.0


def prompt_copy_ratio(output: str, question: str) -> float:
    """Fraction of the answer that its longest run of words copied from the question makes up, 0..1.

    Runs below `NGRAM` words count as 0: a few common words are no copy.
    """
    output_words, question_words = _words(output), _words(question)
    longest = 0
    run_lengths = [0] * (len(question_words) + 1)  # [j]: common run that ends at question word j
    for word in output_words:
        diagonal = 0  # run_lengths[j - 1] before this word
        for j, other in enumerate(question_words, 1):
            diagonal, run_lengths[j] = run_lengths[j], diagonal + 1 if word == other else 0
            longest = max(longest, run_lengths[j])
    return longest / len(output_words) if longest >= NGRAM else 0.0


def score(
    output: str, question: str, reference: str | None, expected: str = "fa"
) -> dict[str, float | None]:
    """All scores of one answer; those that need a reference are None without one.

    Args:
        output: the answer.
        question: the last question.
        reference: a right answer, if there is one.
        expected: the script that the answer should be in, "fa" or "en".
    """
    return {
        "chrf": None if reference is None else chrf(output, reference),
        "rouge_l": None if reference is None else rouge_l(output, reference),
        "repetition": repetition(output),
        "wrong_script": wrong_script(output, expected),
        "prompt_copy": prompt_copy_ratio(output, question),
    }


def aggregate(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over answers, as `metrics.json` holds them.

    chrF and ROUGE-L are means of the scores. The faults are rates, 0..1: the fraction of answers
    whose score exceeds the threshold above.
    """
    scores = [sample["scores"] for sample in samples]
    checks = [_mean(sample["checks"].values()) for sample in samples if sample["checks"]]
    return {
        "n": len(samples),
        "chrf": _mean([s["chrf"] for s in scores]),
        "rouge_l": _mean([s["rouge_l"] for s in scores]),
        "repetition": _mean([s["repetition"] > REPETITION_THRESHOLD for s in scores]),
        "wrong_script": _mean([s["wrong_script"] > WRONG_SCRIPT_THRESHOLD for s in scores]),
        "unfinished": _mean([not sample["finished"] for sample in samples]),
        "prompt_copy": _mean([s["prompt_copy"] > PROMPT_COPY_THRESHOLD for s in scores]),
        "answer_words": _mean([len(persian.words(sample["output"])) for sample in samples]),
        "checks_passed": _mean(checks),
    }


def weighted_mean(groups: Sequence[dict[str, Any]], name: str) -> float | None:
    """The mean of one entry of `aggregate` over groups of answers, weighted by their sizes."""
    present = [(int(g["n"]), float(g[name])) for g in groups if g[name] is not None]
    if not present:
        return None
    return sum(n * value for n, value in present) / sum(n for n, _ in present)


def _mean(values: Iterable[float | None]) -> float | None:
    """The mean of the values that are not None; None without any."""
    present = [float(value) for value in values if value is not None]
    return sum(present) / len(present) if present else None


def _words(text: str) -> list[str]:
    """Words for comparison: normalized, split at spaces."""
    return persian.normalize_for_matching(text).split()
