"""The shipped data is as its README says: schemas, counts, no copies, correct Persian letters."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest

import tarazu

SAMPLES = Path(tarazu.__file__).parent / "samples"
ZWNJ = "\u200c"
ABILITIES = {
    "facts",
    "reasoning",
    "summary",
    "translation",
    "rewriting",
    "format",
    "safety",
    "chat",
}
KINDS = {
    "any_of": "values",
    "all_of": "values",
    "none_of": "values",
    "regex": "pattern",
    "max_words": "value",
    "min_words": "value",
    "lines": "value",
    "json": "keys",
    "script": "value",
}
WEIGHTS = {"system": None, "human": 0.0, "gpt": 1.0}
# What normalization repairs: Arabic letters, control characters, runs of spaces.
REPAIRED = re.compile(r"[\u0643\u064a\u0000-\u0008\u000b-\u001f]|(?<=\S)  +(?=\S)")


def jsonl(name: str) -> list[dict]:
    return [
        json.loads(line)
        for line in (SAMPLES / name).read_text(encoding="utf-8").split("\n")
        if line
    ]


CHAT, READING, QUESTIONS = (
    jsonl("chat_fa.jsonl"),
    jsonl("reading_fa.jsonl"),
    jsonl("questions_fa.jsonl"),
)


def turns(row: dict) -> list[tuple[str, str]]:
    return [(turn["from"], turn["value"]) for turn in row["conversations"]]


def words(text: str) -> list[str]:
    """Words for finding copies: without punctuation, half-spaces and Arabic letters."""
    text = text.replace(ZWNJ, "").replace("ي", "ی").replace("ك", "ک")
    return re.findall(r"\w+", text)


def spoken(row: dict) -> list[str]:
    """The words of a row's questions and answers."""
    return [word for role, text in turns(row) if role != "system" for word in words(text)]


def grams(tokens: list[str], n: int = 8) -> set[tuple[str, ...]]:
    return {tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)}


@pytest.mark.parametrize("rows", [CHAT, READING], ids=["chat", "reading"])
def test_rows_follow_the_schema_of_slimorca(rows: list[dict]) -> None:
    for row in rows:
        assert set(row) == {"conversations"}
        for turn in row["conversations"]:
            assert set(turn) == {"from", "value", "weight"}
            assert turn["weight"] == WEIGHTS[turn["from"]]
            assert turn["value"] == turn["value"].strip() != ""
        roles = [role for role, _ in turns(row)]
        asked = roles[1:] if roles[0] == "system" else roles
        assert asked and asked == ["human", "gpt"] * (len(asked) // 2)


def test_there_are_enough_rows_of_every_shape() -> None:
    assert len(CHAT) >= 240
    system = sum(turns(row)[0][0] == "system" for row in CHAT) / len(CHAT)
    several = sum(sum(role == "gpt" for role, _ in turns(row)) > 1 for row in CHAT) / len(CHAT)
    assert 0.30 <= system <= 0.40
    assert 0.20 <= several <= 0.30


def test_rows_are_short_enough_for_a_slow_machine_yet_varied() -> None:
    answers = [len(text.split()) for row in CHAT for role, text in turns(row) if role == "gpt"]
    assert sum(len(text.split()) for row in CHAT for _, text in turns(row)) / len(CHAT) <= 110
    assert min(answers) <= 3 and 90 <= max(answers) <= 160
    assert sum(15 <= n <= 70 for n in answers) > len(answers) / 2


def test_no_row_is_a_copy_or_near_copy_of_another() -> None:
    row_grams = [grams(spoken(row)) for row in CHAT]
    for (i, a), (j, b) in combinations(enumerate(row_grams), 2):
        assert not a & b, f"lines {i + 1} and {j + 1} share {next(iter(a & b))}"
    # Rows under eight words have no 8-gram: complete turns must differ too.
    abstention = tuple(words("در متن نیامده است"))
    for part in ("human", "gpt"):
        texts = [text for row in CHAT for role, text in turns(row) if role == part]
        counts = Counter(tuple(words(text)) for text in texts)
        assert not [text for text, n in counts.items() if n > 1 and text != abstention]


def test_the_persian_is_written_with_half_spaces_and_persian_letters() -> None:
    # Answers only: questions may have errors on purpose.
    text = "\n".join(text for row in CHAT for role, text in turns(row) if role == "gpt")
    assert text.count(ZWNJ) / len(text.split()) > 0.05
    separated = re.findall(r"(?<!\w)ن?می(?:شود|کند|کنند|رود|دهد|گوید|خواهم|توان|توانم)(?!\w)", text)
    assert not separated, "a verb is written without its half-space"
    assert not re.search(rf"{ZWNJ}[\s.،؛؟!]|\s{ZWNJ}|{ZWNJ}{ZWNJ}", text), (
        "a half-space joins nothing"
    )
    letters = [c for c in text if unicodedata.category(c).startswith("L")]
    assert sum("\u0600" <= c <= "\u06ff" for c in letters) / len(letters) > 0.85


def test_a_handful_of_rows_need_repair_and_the_readme_names_them() -> None:
    broken = {
        i for i, row in enumerate(CHAT, 1) if any(REPAIRED.search(text) for _, text in turns(row))
    }
    assert 6 <= len(broken) <= 10
    readme = (SAMPLES / "README.md").read_text(encoding="utf-8")
    listed = next(line for line in readme.splitlines() if line.startswith("Lines to repair:"))
    assert broken == {int(n) for n in re.findall(r"\d+", listed)}


def test_questions_are_four_per_ability_with_known_checks() -> None:
    assert len({q["id"] for q in QUESTIONS}) == len(QUESTIONS) == 32
    assert Counter(q["ability"] for q in QUESTIONS) == dict.fromkeys(ABILITIES, 4)
    assert any(q["system"] for q in QUESTIONS) and not all(q["system"] for q in QUESTIONS)
    for q in QUESTIONS:
        assert set(q) == {"id", "ability", "system", "prompt", "good_fa", "good_en", "checks"}
        assert re.fullmatch(rf"q-{q['ability']}-\d\d", q["id"])
        assert 1 <= len(q["checks"]) <= 4
        for check in q["checks"]:
            assert set(check) == {"text_fa", "text_en", "kind", KINDS[check["kind"]]}
            assert check[KINDS[check["kind"]]], check


def test_no_question_is_in_the_training_rows() -> None:
    asked = {
        tuple(spoken(row)[: len(words(q["prompt"]))]) for row in CHAT + READING for q in QUESTIONS
    }
    trained_grams = set().union(*(grams(spoken(row)) for row in CHAT + READING))
    for q in QUESTIONS:
        assert tuple(words(q["prompt"])) not in asked, q["id"]
        assert not grams(words(q["prompt"])) & trained_grams, q["id"]


def test_reading_answers_are_short_and_occur_in_the_passage() -> None:
    assert len(READING) == 24
    missing = 0
    for row in READING:
        (_, _), (_, asked), (_, answer) = turns(row)
        assert 1 <= len(answer.split()) <= 6
        missing += answer == "پاسخ در متن نیست"
        passage = asked.rsplit("پرسش:", 1)[0]
        assert answer in passage or answer == "پاسخ در متن نیست"
    assert missing == 6


@pytest.mark.parametrize(
    ("language", "low", "high"), [("en", "a", "z"), ("fa", "\u0600", "\u06ff")]
)
def test_forgetting_texts_are_plain_prose_of_one_language(
    language: str, low: str, high: str
) -> None:
    text = (SAMPLES / f"forgetting_{language}.txt").read_text(encoding="utf-8")
    paragraphs = [p.strip() for p in text.split("\n\n")]
    assert len(paragraphs) == len(set(paragraphs)) == 60
    assert all(20 <= len(p.split()) <= 60 and "\n" not in p for p in paragraphs)
    letters = [c for c in text.lower() if c.isalpha()]
    assert all(low <= c <= high for c in letters)


def test_forgetting_and_reading_are_held_out_from_the_chat_rows() -> None:
    trained_grams = set().union(*(grams(spoken(row)) for row in CHAT))
    text = (SAMPLES / "forgetting_fa.txt").read_text(encoding="utf-8")
    assert not grams(words(text)) & trained_grams
    assert not set().union(*(grams(spoken(row)) for row in READING)) & trained_grams


def test_hostile_rows_cover_the_listed_faults() -> None:
    lines = (SAMPLES / "hostile.jsonl").read_bytes().decode("utf-8").split("\n")[:-1]
    assert len(lines) == 52
    text = "\n".join(lines)
    markers = [
        "<script>alert(1)</script>",
        "onerror=alert(1)",
        "javascript:",
        "{{7*7}}",
        "<end_of_turn>",
        "<|eot_id|>",
        "<|im_end|>",
        "<start_of_turn>model",
        "\\ud800",
        "\\u0000",
        "\u202e",
        '"conversations": []',
        '"messages"',
        '"instruction"',
        '"alien"',
        "NaN",
    ]
    assert [m for m in markers if m not in text] == []
    kinds = Counter(parse(line) for line in lines)
    assert kinds["not JSON"] >= 2 and kinds["object"] >= 35 and kinds["other JSON"] >= 3
    assert len(set(lines)) == len(lines) - 1  # one exact duplicate
    values = [
        turn.get("value") for line in lines if parse(line) == "object" for turn in turns_of(line)
    ]
    assert any(isinstance(v, str) and len(v) == 20_000 for v in values)
    assert any(isinstance(v, str) and len(v.split()) == 5_000 for v in values)
    assert any(v is None for v in values) and any(isinstance(v, int) for v in values)


def parse(line: str) -> str:
    try:
        return "object" if isinstance(json.loads(line), dict) else "other JSON"
    except (ValueError, RecursionError):
        return "not JSON"


def turns_of(line: str) -> list[dict]:
    items = json.loads(line).get("conversations")
    return [turn for turn in items if isinstance(turn, dict)] if isinstance(items, list) else []
