"""ROUGE-L: the longest common subsequence of words (Lin 2004), COCO's version.

Precision and recall are each the best over the references; one F-measure with beta = 1.2 combines
them. The package rouge-score has neither this combination nor a beta.
"""

from __future__ import annotations

from collections.abc import Sequence

BETA = 1.2  # weighs recall more than precision


def longest_common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Return the length of the longest common subsequence, in words."""
    # row[j] is the length for the words of `a` so far and the first j words of `b`.
    row = [0] * (len(b) + 1)
    for word in a:
        diagonal = 0  # row[j - 1] before this word
        for j, other in enumerate(b, 1):
            above = row[j]
            row[j] = diagonal + 1 if word == other else max(above, row[j - 1])
            diagonal = above
    return row[-1]


def rouge_l(candidate: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Return the ROUGE-L of a tokenised candidate, 0..1; an empty one scores 0."""
    common = [longest_common_subsequence(candidate, reference) for reference in references]
    if not any(common):
        return 0.0
    precision = max(common) / len(candidate)
    recall = max(
        c / len(reference) for c, reference in zip(common, references, strict=True) if reference
    )
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)
