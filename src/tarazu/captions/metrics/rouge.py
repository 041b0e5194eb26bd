"""ROUGE-L: the longest common subsequence of words (Lin 2004), as the COCO scorers combine it.

Precision and recall are each the best over the references, then one F-measure with beta = 1.2, which leans to recall.
"""

from __future__ import annotations

from collections.abc import Sequence

BETA = 1.2


def longest_common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Its length, in words: order matters, gaps are free."""
    row = [0] * (len(b) + 1)
    for word in a:
        diagonal = 0
        for j, other in enumerate(b, 1):
            above = row[j]
            row[j] = diagonal + 1 if word == other else max(above, row[j - 1])
            diagonal = above
    return row[-1]


def rouge_l(candidate: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """ROUGE-L of a tokenised candidate, 0..1; an empty one scores 0."""
    common = [longest_common_subsequence(candidate, reference) for reference in references]
    if not any(common):
        return 0.0
    precision = max(common) / len(candidate)
    recall = max(
        c / len(reference) for c, reference in zip(common, references, strict=True) if reference
    )
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)
