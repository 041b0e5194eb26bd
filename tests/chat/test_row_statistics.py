"""Row statistics and their summary, against counts made by hand."""

from __future__ import annotations

import numpy as np
import pytest
from chat import spelling

from tarazu.chat.data import statistics
from tarazu.chat.data.chat_template import select_template
from tarazu.chat.data.conversation import Conversation, Turn

ROWS = [
    Conversation((Turn("user", "سلام"), Turn("assistant", "درود بر شما"))),
    Conversation(
        (
            Turn("system", "S"),
            Turn("user", "یک"),
            Turn("assistant", "می‌روم"),
            Turn("user", "دو"),
            Turn("assistant", "ABCD efgh"),
        )
    ),
    Conversation(
        (
            Turn("user", "یک"),
            Turn("assistant", "ناخوانده", train_on=False),
            Turn("user", "دو"),
            Turn("assistant", "پنج واژه در این پاسخ"),
        )
    ),
]


def described(max_length: int | None = None) -> tuple[dict, list]:
    template = select_template(spelling.gemma(), "gemma2")
    encoded = template.encode_batch(ROWS, max_length)
    measured = [statistics.row_statistics(row, e) for row, e in zip(ROWS, encoded, strict=True)]
    assert set(measured[0]) == set(statistics.COLUMNS)
    columns = {
        name: np.array([m[name] for m in measured], dtype=np.int32) for name in statistics.COLUMNS
    }
    return statistics.describe(columns, duplicates=2), encoded


def test_counts_by_hand() -> None:
    numbers, encoded = described()
    assert numbers["rows"] == 3 and numbers["duplicates"] == 2
    assert numbers["turns_per_row"] == {"1": 1, "2": 2}
    assert numbers["roles"] == {"system": 1, "user": 5, "assistant": 5}
    assert numbers["lengths"]["words"]["mean"] == pytest.approx((4 + 6 + 8) / 3)
    assert numbers["lengths"]["characters"]["max"] == sum(len(turn.text) for turn in ROWS[2].turns)
    assert numbers["lengths"]["tokens"]["mean"] == pytest.approx(
        np.mean([len(e.ids) for e in encoded])
    )
    latin = 1 + 8
    letters = latin + sum(
        c.isalpha() for row in ROWS for turn in row.turns for c in turn.text if c > "z"
    )
    assert numbers["english_fraction"] == pytest.approx(latin / letters)
    assert numbers["truncated_rows"] == 0 and numbers["truncated_token_fraction"] == 0


def test_tokens_per_word_counts_the_tokens_of_answers_alone() -> None:
    template = select_template(spelling.gemma(), "gemma2")
    answers = ["درود بر شما", "می‌روم", "ABCD efgh", "پنج واژه در این پاسخ"]
    tokens = sum(len(template.tokenizer(a, add_special_tokens=False)["input_ids"]) for a in answers)
    assert described()[0]["tokens_per_word"] == pytest.approx(tokens / (3 + 1 + 2 + 5))


def test_lengths_are_measured_before_truncation() -> None:
    complete, (*_, last) = described()
    truncated, _ = described(max_length=len(last.ids) - 4)
    assert truncated["lengths"]["tokens"] == complete["lengths"]["tokens"]
    assert truncated["truncated_rows"] >= 1
    assert 0 < truncated["truncated_token_fraction"] < 0.2


@pytest.mark.parametrize(
    "values",
    [
        [5],
        [0, 0, 0],
        [1, 2, 3],
        list(range(1000)),
        [3] * 99 + [9000],
        np.random.default_rng(0).lognormal(5, 1, 5000),
    ],
)
def test_histograms_hold_every_row_once(values) -> None:
    values = np.array(values, dtype=np.int64)
    summary = statistics.length_summary(values)
    histogram = summary["histogram"]
    assert sum(histogram["counts"]) == len(values)
    assert len(histogram["edges"]) == len(histogram["counts"]) + 1
    assert histogram["edges"] == sorted(set(histogram["edges"]))
    assert summary["max"] == values.max() and summary["p50"] == np.percentile(values, 50)
    assert all(isinstance(n, int) for n in histogram["counts"])


def test_no_rows_have_no_numbers() -> None:
    empty = statistics.describe(
        {name: np.array([], dtype=np.int32) for name in statistics.COLUMNS}, 0
    )
    assert empty["rows"] == 0 and empty["tokens_per_word"] is None
    assert empty["lengths"]["words"]["mean"] is None
