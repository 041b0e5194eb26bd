"""The checks of the shipped questions pass good answers that people wrote, and no others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from samples.written_answers import BAD, GOOD

import tarazu
from tarazu.chat.evaluation.questions import check, load

SAMPLES = Path(tarazu.__file__).parent / "samples"
QUESTIONS = {q.id: q for q in load(SAMPLES / "questions_fa.jsonl")}


def passes_all(name: str, answer: str) -> bool:
    return all(check(QUESTIONS[name], answer).values())


def test_every_question_has_answers_written_for_it() -> None:
    assert set(GOOD) == set(BAD) == set(QUESTIONS)


@pytest.mark.parametrize("name", GOOD)
def test_good_answers_pass_in_both_phrasings(name: str) -> None:
    for answer in GOOD[name]:
        failed = [text for text, passed in check(QUESTIONS[name], answer).items() if not passed]
        assert not failed, answer


@pytest.mark.parametrize("name", BAD)
def test_a_wrong_answer_does_not_pass(name: str) -> None:
    assert not passes_all(name, BAD[name])


@pytest.mark.parametrize("name", GOOD)
def test_no_empty_copied_or_evasive_answer_passes(name: str) -> None:
    question = QUESTIONS[name]
    lines = question.prompt.split("\n")
    copies = [
        question.prompt,
        question.prompt * 2,
        lines[0],
        lines[-1],
        f"{question.system}\n{question.prompt}",
    ]
    for answer in ["", " \n", "…", "نمی‌دانم.", "بله، حتماً.", "I do not know.", *copies]:
        assert not passes_all(name, answer), answer


def test_an_answer_to_another_question_does_not_pass() -> None:
    passed = [
        (a, b) for a in GOOD for b in GOOD if a != b for answer in GOOD[b] if passes_all(a, answer)
    ]
    assert not passed


def test_unrelated_fluent_persian_does_not_pass() -> None:
    """Good prose about something else does not pass, nor do most answers of the training rows."""
    prose = (SAMPLES / "forgetting_fa.txt").read_text(encoding="utf-8").split("\n\n")
    assert [(name, text) for name in QUESTIONS for text in prose if passes_all(name, text)] == []
    rows = [
        json.loads(line)
        for line in (SAMPLES / "chat_fa.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    trained_answers = [
        turn["value"] for row in rows[::4] for turn in row["conversations"] if turn["from"] == "gpt"
    ]
    for name in QUESTIONS:
        assert sum(passes_all(name, text) for text in trained_answers) < 0.03 * len(
            trained_answers
        ), name
