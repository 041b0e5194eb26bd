"""The longest common subsequence in bits, beside the textbook's table."""

from __future__ import annotations

import random

from tarazu.chat.evaluation.text_metrics import _common


def table(a: list[str], b: list[str]) -> int:
    row = [0] * (len(b) + 1)
    for word in a:
        previous = 0
        for j, other in enumerate(b, 1):
            previous, row[j] = row[j], previous + 1 if word == other else max(row[j], row[j - 1])
    return row[-1]


def test_bits_and_table_agree():
    draw = random.Random(0)
    for _ in range(300):
        a, b = ([draw.choice("abcde") for _ in range(draw.randrange(0, 90))] for _ in range(2))
        assert _common(a, b) == table(a, b)
