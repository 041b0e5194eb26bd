"""ROUGE-L equals the COCO scorer's."""

from __future__ import annotations

import pytest
from captions.written_captions import CANDIDATES, REFERENCES, SETS, tokenised, tokenised_references

from tarazu.captions.metrics.ptb_tokenizer import ptb_like
from tarazu.captions.metrics.rouge import longest_common_subsequence, rouge_l

# pycocoevalcap 1.2, Rouge().compute_score(references, candidates)[1] on tokens of `ptb_like`.
COCO_IMAGES = [
    0.60696517,
    0.61538462,
    0.58404255,
    0.55707763,
    0.79880952,
    0.29140127,
]  # "written", in its order


def ours(candidates: dict[str, str], references: dict[str, list[str]]) -> list[float]:
    return [
        rouge_l(ptb_like(text), [ptb_like(r) for r in references[image]])
        for image, text in candidates.items()
    ]


def test_equals_stored_scores_of_the_coco_scorer():
    assert ours(CANDIDATES, REFERENCES) == pytest.approx(COCO_IMAGES, abs=1e-6)


@pytest.mark.parametrize("name", SETS)
def test_equals_the_coco_scorer(name):
    scorer = pytest.importorskip("pycocoevalcap.rouge.rouge").Rouge()
    candidates, references = SETS[name]
    _, images = scorer.compute_score(tokenised_references(references), tokenised(candidates))
    assert ours(candidates, references) == pytest.approx(images, abs=1e-9)


def test_subsequences_keep_order_and_may_have_gaps():
    assert longest_common_subsequence(["a", "b", "c", "d"], ["a", "x", "c", "b", "d"]) == 3
    assert longest_common_subsequence([], ["a"]) == 0
    assert rouge_l([], [["a"]]) == 0
