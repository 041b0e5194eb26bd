"""Rows of every schema give the same conversation; faulty rows are repaired or dropped by name."""

from __future__ import annotations

import json

import pytest

from tarazu.chat.data import conversation as c
from tarazu.chat.data.conversation import RowDropped, RowIssues, Turn, parse_row

EXPECTED = (Turn("system", "کوتاه."), Turn("user", "پرسش؟"), Turn("assistant", "پاسخ."))
SCHEMAS = {
    "slimorca": {
        "conversations": [
            {"from": "system", "value": "کوتاه.", "weight": None},
            {"from": "human", "value": "پرسش؟", "weight": 0.0},
            {"from": "gpt", "value": "پاسخ.", "weight": 1.0},
        ]
    },
    "slimorca, no weight": {
        "conversations": [
            {"from": "system", "value": "کوتاه."},
            {"from": "human", "value": "پرسش؟"},
            {"from": "gpt", "value": "پاسخ."},
        ],
        "source": "x",
        "topic": "y",
    },
    "openai": {
        "messages": [
            {"role": "system", "content": "کوتاه."},
            {"role": "user", "content": "پرسش؟"},
            {"role": "assistant", "content": "پاسخ."},
        ]
    },
    "openai parts": {
        "messages": [
            {"role": "developer", "content": "کوتاه."},
            {"role": "user", "content": [{"type": "text", "text": "پرسش؟"}]},
            {"role": "assistant", "content": "پاسخ."},
        ]
    },
    "bare list": [
        {"role": "system", "content": "کوتاه."},
        {"role": "user", "content": "پرسش؟"},
        {"role": "assistant", "content": "پاسخ."},
    ],
    "alpaca": {"system": "کوتاه.", "instruction": "پرسش؟", "input": "", "output": "پاسخ."},
    "prompt and response": {"system_prompt": "کوتاه.", "prompt": "پرسش؟", "response": "پاسخ."},
    "question and answer": {"system": "کوتاه.", "question": "پرسش؟", "answer": "پاسخ."},
    "csv cell": {
        "conversations": json.dumps(
            [
                {"from": "system", "value": "کوتاه."},
                {"from": "human", "value": "پرسش؟"},
                {"from": "gpt", "value": "پاسخ."},
            ]
        )
    },
}


@pytest.mark.parametrize("row", SCHEMAS.values(), ids=SCHEMAS)
def test_every_schema_gives_the_same_conversation(row) -> None:
    assert parse_row(row)[0].turns == EXPECTED and parse_row(row)[1] == set()


def test_alpaca_input_and_history() -> None:
    row = {
        "instruction": "جمع کن",
        "input": "۲ و ۳",
        "output": "۵",
        "history": [["سلام", "درود"], ["خوبی؟", "بله"]],
    }
    texts = [turn.text for turn in parse_row(row)[0].turns]
    assert texts == ["سلام", "درود", "خوبی؟", "بله", "جمع کن\n\n۲ و ۳", "۵"]


def turns(*pairs: tuple[str, object]) -> dict:
    return {"conversations": [{"from": role, "value": value} for role, value in pairs]}


@pytest.mark.parametrize(
    ("row", "repair", "expected"),
    [
        (
            turns(("system", " "), ("human", "الف"), ("gpt", "ب")),
            c.EMPTY_TURN,
            [("user", "الف"), ("assistant", "ب")],
        ),
        (
            turns(("human", "الف"), ("gpt", "ب"), ("human", "پ")),
            c.OPEN_QUESTION,
            [("user", "الف"), ("assistant", "ب")],
        ),
        (
            turns(("gpt", "سلام"), ("human", "الف"), ("gpt", "ب")),
            c.EARLY_ANSWER,
            [("user", "الف"), ("assistant", "ب")],
        ),
        (
            turns(("human", "الف"), ("human", "ب"), ("gpt", "پ")),
            c.MERGED,
            [("user", "الف\n\nب"), ("assistant", "پ")],
        ),
        (
            turns(("human", "الف"), ("gpt", "ب"), ("system", "س"), ("human", "پ"), ("gpt", "ت")),
            c.LATE_SYSTEM,
            [("user", "الف"), ("assistant", "ب"), ("user", "س\n\nپ"), ("assistant", "ت")],
        ),
        (
            turns(
                ("human", "<|im_start|>الف<start_of_turn>"), ("gpt", "ب<end_<end_of_turn>of_turn>")
            ),
            c.MARKERS,
            [("user", "الف"), ("assistant", "ب")],
        ),
    ],
)
def test_repairs_are_named(row: dict, repair: str, expected: list) -> None:
    made, repairs = parse_row(row)
    assert [(turn.role, turn.text) for turn in made.turns] == expected
    assert repair in repairs


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (turns(("human", "الف"), ("tool", "ب"), ("gpt", "پ")), c.UNKNOWN_ROLE),
        ({"conversations": [{"value": "بی‌نقش"}]}, c.UNKNOWN_ROLE),
        (turns(("human", "الف")), c.NO_ANSWER),
        (turns(("human", "الف"), ("gpt", " \u200c\n")), c.NO_ANSWER),
        (turns(("system", "س"), ("gpt", "ب")), c.NO_QUESTION),
        (turns(), c.NO_QUESTION),
        (turns(("human", 5), ("gpt", "ب")), c.WRONG_TYPE),
        (turns(("human", ["x"]), ("gpt", "ب")), c.WRONG_TYPE),
        ({"conversations": "[{"}, c.MALFORMED),
        ({"conversations": "سلام"}, c.WRONG_TYPE),
        ({"conversations": {"from": "human"}}, c.WRONG_TYPE),
        ({"conversations": ["متن"]}, c.WRONG_TYPE),
        ({"text": "متن"}, c.UNKNOWN_SCHEMA),
        ({}, c.UNKNOWN_SCHEMA),
        ("متن", c.WRONG_TYPE),
        (None, c.WRONG_TYPE),
        (
            {
                "conversations": [
                    {"from": "human", "value": "x"},
                    {"from": "gpt", "value": "y", "weight": 0.0},
                ]
            },
            c.NO_ANSWER,
        ),
        (
            {
                "conversations": [
                    {"from": "human", "value": "x"},
                    {"from": "gpt", "value": "y", "weight": "1"},
                ]
            },
            c.WRONG_TYPE,
        ),
        ({"instruction": "x", "output": None}, c.NO_ANSWER),
    ],
)
def test_unusable_rows_are_dropped_with_the_reason(row, reason: str) -> None:
    with pytest.raises(RowDropped) as dropped:
        parse_row(row)
    assert dropped.value.reason == reason


def test_answers_of_weight_zero_are_not_trained_on() -> None:
    row = {
        "messages": [
            {"role": "user", "content": "یک"},
            {"role": "assistant", "content": "دو", "weight": 0},
            {"role": "user", "content": "سه"},
            {"role": "assistant", "content": "چهار", "weight": 1},
        ]
    }
    assert [turn.train_on for turn in parse_row(row)[0].turns] == [True, False, True, True]


def test_issues_keep_the_count_and_the_first_locations() -> None:
    issues = RowIssues()
    for line in range(1, 1001):
        issues.add("repaired", "spaces tidied", line)
    issues.add("dropped", c.NO_ANSWER, "b.jsonl:7")
    first, second = issues.as_list()
    assert first == {"reason": c.NO_ANSWER, "kind": "dropped", "count": 1, "lines": ["b.jsonl:7"]}
    assert second["count"] == 1000 and second["lines"] == list(range(1, 21))
    assert RowIssues.from_list(issues.as_list()).as_list() == issues.as_list()
