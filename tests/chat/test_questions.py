"""Designed questions load, and their checks separate good answers from bad ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tarazu.chat.data.sources import local_path
from tarazu.chat.evaluation.questions import Question, check, expected_script, load
from tarazu.errors import UserError


def question(**check_fields) -> Question:
    """A question with one check."""
    one_check = {"text_fa": "الف", "text_en": "it", **check_fields}
    return Question.model_validate(
        {
            "id": "q",
            "ability": "facts",
            "prompt": "؟",
            "good_fa": "خوب",
            "good_en": "good",
            "checks": [one_check],
        }
    )


def passes(answer: str, **check_fields) -> bool:
    return check(question(**check_fields), answer)["it"]


@pytest.mark.parametrize(
    ("check_fields", "good", "bad"),
    [
        (
            {"kind": "any_of", "values": ["اصفهان", "شیراز"]},
            ["شهر اصفهان.", "اصفهانِ زیبا", "شيراز"],
            ["تهران", ""],
        ),
        ({"kind": "any_of", "values": ["۱۲"]}, ["۱۲ تا", "12.", "۱۲٫۵"], ["۱۲۳", "312", ""]),
        ({"kind": "any_of", "values": ["می‌روم"]}, ["من می‌روم", "ميروم"], ["می‌رود", ""]),
        ({"kind": "any_of", "values": ["نو "]}, ["خانهٔ نو.", "نو"], ["نوشت"]),
        (
            {"kind": "all_of", "values": ["book", "kitchen"]},
            ["The Book is in the kitchen."],
            ["a book", ""],
        ),
        ({"kind": "none_of", "values": ["علی"]}, ["سارا"], ["علي آمد", "", "  \n"]),
        (
            {"kind": "regex", "pattern": r"(?<!\d)2:45(?!\d)|می\s?رود"},
            ["۲:۴۵", "ساعت 2:45 است", "می‌رود"],
            ["12:45", ""],
        ),
        ({"kind": "max_words", "value": 2}, ["بله", "می‌روم خانه"], ["یک دو سه", "", "..."]),
        ({"kind": "min_words", "value": 2}, ["یک دو"], ["یک", "", "می‌روم"]),
        ({"kind": "lines", "value": 2}, ["الف\nب", "الف\n\nب\n"], ["الف", "الف\nب\nپ", ""]),
        (
            {"kind": "json", "keys": ["a", "b"]},
            ['{"a": 1, "b": 2}', '```json\n{"a": 1, "b": 2, "c": 3}\n```'],
            ['{"a": 1}', '[{"a": 1, "b": 2}]', 'Here: {"a": 1, "b": 2}', "{", "[" * 100_000, ""],
        ),
        (
            {"kind": "script", "value": "fa"},
            ["سلام دنیا world!!", "متن"],
            ["hello", "hello سلام there", "12", ""],
        ),
        ({"kind": "script", "value": "en"}, ["hello"], ["سلام", ""]),
    ],
)
def test_checks(check_fields: dict, good: list[str], bad: list[str]) -> None:
    assert [answer for answer in good if not passes(answer, **check_fields)] == []
    assert [answer for answer in bad if passes(answer, **check_fields)] == []


def test_the_shipped_questions() -> None:
    questions = load(local_path("samples:questions_fa.jsonl"))
    assert len(questions) >= 24
    abilities = {
        "facts",
        "reasoning",
        "summary",
        "translation",
        "rewriting",
        "format",
        "safety",
        "chat",
    }
    assert {q.ability for q in questions} == abilities
    for q in questions:
        assert not any(check(q, "").values())
        sample = q.sample()
        assert sample["turns"][-1] == {"role": "user", "text": q.prompt}
        assert sample["good"] == q.good_fa
        # The report names every check in Persian.
        assert sample["checks_fa"].keys() == check(q, "").keys()
        assert (sample["turns"][0]["role"] == "system") == bool(q.system)
    assert {expected_script(q) for q in questions} == {"fa", "en"}


GOOD = {
    "id": "q1",
    "ability": "facts",
    "system": None,
    "prompt": "؟",
    "good_fa": "خ",
    "good_en": "g",
    "checks": [{"kind": "min_words", "value": 1, "text_fa": "الف", "text_en": "it"}],
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": ""}, "prompt"),
        ({"checks": []}, "checks"),
        ({"promt": "x"}, "promt"),
        ({"checks": [{**GOOD["checks"][0], "kind": "maxwords"}]}, "maxwords"),
        ({"checks": [{**GOOD["checks"][0], "value": -1}]}, "greater than 0"),
        ({"checks": [{**GOOD["checks"][0], "values": ["x"]}]}, "values"),
        (
            {"checks": [{"kind": "regex", "pattern": "(", "text_fa": "الف", "text_en": "it"}]},
            "not a regular expression",
        ),
        (
            {"checks": [{"kind": "any_of", "values": ["؟"], "text_fa": "الف", "text_en": "it"}]},
            "no letter or digit",
        ),
        ({"checks": GOOD["checks"] * 2}, "same text_en"),
        ({"id": "q0"}, "occurs twice"),
        ("{not json", "JSON"),
    ],
)
def test_malformed_questions_are_refused_with_their_line(
    change, message: str, tmp_path: Path
) -> None:
    bad = change if isinstance(change, str) else json.dumps({**GOOD, **change})
    path = tmp_path / "q.jsonl"
    path.write_text(f"{json.dumps({**GOOD, 'id': 'q0'})}\n\n{bad}\n", encoding="utf-8")
    with pytest.raises(UserError, match="(?i)" + message.replace("(", r"\(")) as error:
        load(path)
    assert error.value.location == f"{path}:3"


@pytest.mark.parametrize("content", [None, b"", b"\n\n", b"\xff\xfe"])
def test_files_without_questions(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError):
        load(path)
