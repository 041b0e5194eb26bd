"""ROUGE-L against the package rouge-score; the longest common subsequence against a recursion."""

from __future__ import annotations

import json
import random
from functools import cache

import pytest

from tarazu.chat.data.persian import normalize_for_matching
from tarazu.chat.data.sources import local_path
from tarazu.chat.evaluation.text_metrics import longest_common_subsequence, rouge_l


def test_longest_common_subsequence_equals_its_definition() -> None:
    rng = random.Random(0)
    for _ in range(100):
        a, b = ("".join(rng.choices("abc", k=rng.randrange(0, 12))) for _ in range(2))

        @cache
        def length(i: int, j: int, a: str = a, b: str = b) -> int:
            if not i or not j:
                return 0
            if a[i - 1] == b[j - 1]:
                return length(i - 1, j - 1) + 1
            return max(length(i - 1, j), length(i, j - 1))

        assert longest_common_subsequence(a, b) == length(len(a), len(b))


def test_rouge_l_equals_rouge_score_on_persian_words() -> None:
    rouge_scorer = pytest.importorskip("rouge_score.rouge_scorer")

    class PersianWords:
        def tokenize(self, text: str) -> list[str]:
            return normalize_for_matching(text).split()

    scorer = rouge_scorer.RougeScorer(["rougeL"], tokenizer=PersianWords())
    lines = local_path("samples:chat_fa.jsonl").read_text(encoding="utf-8").splitlines()
    answers = [json.loads(line)["conversations"][-1]["value"] for line in lines]
    for output, reference in zip(answers, [*answers[1:], answers[0]], strict=True):
        expected = 100 * scorer.score(reference, output)["rougeL"].fmeasure
        assert rouge_l(output, reference) == pytest.approx(expected, abs=1e-9)
