"""Designed questions: the prompt, what a good answer has, and checks that a program can make.

A check reads the answer with digits as 0-9 and without half-spaces, so that spelling variants do
not decide. An empty answer passes no check, not even `none_of`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    PositiveInt,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from tarazu.chat.data.persian import ZWNJ, letter_counts, normalize, normalize_for_matching, words
from tarazu.errors import UserError
from tarazu.recipe.schema import StrictModel

_DIGITS = str.maketrans("۰۱۲۳۴۵۶۷۸۹", "0123456789", ZWNJ)


class _Check(StrictModel):
    """A check, with its text in both languages. `text_en` is the key of its result."""

    text_fa: str = Field(min_length=1)
    text_en: str = Field(min_length=1)


class Values(_Check):
    """Any, all or none of the values occur in the answer.

    A value that begins or ends in a digit does not match inside a longer number, and one that
    begins or ends in a space does not match inside a longer word.
    """

    kind: Literal["any_of", "all_of", "none_of"]
    values: list[str] = Field(min_length=1)

    @field_validator("values")
    @classmethod
    def _not_empty(cls, values: list[str]) -> list[str]:
        if not all(normalize_for_matching(value) for value in values):
            raise ValueError("a value has no letter or digit")
        return values

    def passed(self, answer: str) -> bool:
        """Whether the answer passes."""
        text = normalize_for_matching(answer)
        matches = [_pattern(value).search(text) is not None for value in self.values]
        if self.kind == "all_of":
            return all(matches)
        return any(matches) if self.kind == "any_of" else not any(matches)


class Pattern(_Check):
    """A regular expression matches somewhere in the answer."""

    kind: Literal["regex"]
    pattern: str = Field(min_length=1)

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from None
        return pattern

    def passed(self, answer: str) -> bool:
        """Whether the answer passes."""
        return re.search(self.pattern, normalize(answer)[0].translate(_DIGITS)) is not None


class Length(_Check):
    """At most or at least `value` words, or exactly `value` non-empty lines."""

    kind: Literal["max_words", "min_words", "lines"]
    value: PositiveInt

    def passed(self, answer: str) -> bool:
        """Whether the answer passes."""
        if self.kind == "lines":
            return sum(bool(line.strip()) for line in answer.splitlines()) == self.value
        num_words = len(words(answer))
        return num_words <= self.value if self.kind == "max_words" else num_words >= self.value


class Json(_Check):
    """The answer is one JSON object with these keys. A code fence around it is allowed."""

    kind: Literal["json"]
    keys: list[str] = []

    def passed(self, answer: str) -> bool:
        """Whether the answer passes."""
        fenced = re.fullmatch(r"\s*```(?:json)?\s*(.*?)\s*```\s*", answer, re.DOTALL)
        try:
            value = json.loads(fenced[1] if fenced else answer)
        except (ValueError, RecursionError):
            return False
        return isinstance(value, dict) and set(self.keys) <= set(value)


class Script(_Check):
    """More than half of the answer's letters are Persian (fa) or Latin (en)."""

    kind: Literal["script"]
    value: Literal["fa", "en"]

    def passed(self, answer: str) -> bool:
        """Whether the answer passes."""
        counts = letter_counts(answer)
        return (counts.arabic if self.value == "fa" else counts.latin) * 2 > counts.letters


Check = Annotated[Values | Pattern | Length | Json | Script, Field(discriminator="kind")]


class Question(StrictModel):
    """One designed question of one ability (facts, reasoning, summary, ...).

    `good_fa` and `good_en` say what a good answer has, for readers of the report and for the judge.
    """

    id: str = Field(min_length=1)
    ability: str = Field(min_length=1)
    system: str | None = None
    prompt: str = Field(min_length=1)
    good_fa: str
    good_en: str
    checks: list[Check] = Field(min_length=1)

    @model_validator(mode="after")
    def _texts_differ(self) -> Question:
        if len({check.text_en for check in self.checks}) < len(self.checks):
            raise ValueError("two checks have the same text_en, which is the key of their results")
        return self

    def sample(self) -> dict[str, Any]:
        """The question as a line of samples.jsonl, before it is answered."""
        turns = [{"role": "system", "text": self.system}] if self.system else []
        turns.append({"role": "user", "text": self.prompt})
        return {
            "id": self.id,
            "from": "questions",
            "ability": self.ability,
            "turns": turns,
            "reference": None,
            "good": self.good_fa,
            "good_en": self.good_en,
            "checks_fa": {check.text_en: check.text_fa for check in self.checks},
        }


_QUESTION = TypeAdapter(Question)


def load(path: str | Path) -> list[Question]:
    """Read the questions of a JSON-lines file.

    Raises:
        UserError: the file cannot be read, or a line is not a valid question.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"the questions cannot be read: {error}",
            location=str(path),
            hint="give a JSON-lines file: questions",
        ) from None
    questions: dict[str, Question] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        question = _parse(line, f"{path}:{number}")
        if question.id in questions:
            raise UserError(f"the id {question.id!r} occurs twice", location=f"{path}:{number}")
        questions[question.id] = question
    if not questions:
        raise UserError("there is no question in this file", location=str(path))
    return list(questions.values())


def check(question: Question, answer: str) -> dict[str, bool]:
    """Whether an answer passes each check, by the check's English text."""
    empty = not normalize_for_matching(answer)
    return {check.text_en: not empty and check.passed(answer.strip()) for check in question.checks}


def expected_script(question: Question) -> Literal["fa", "en"]:
    """The script that the answer should be in: that of a script check, else Persian."""
    return next((check.value for check in question.checks if isinstance(check, Script)), "fa")


def _parse(line: str, location: str) -> Question:
    try:
        return _QUESTION.validate_json(line)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise UserError(f"{field}: {message}" if field else message, location=location) from None


def _pattern(value: str) -> re.Pattern[str]:
    """A pattern for a value of `Values` in a normalized answer."""
    normalized = normalize_for_matching(value)
    before = after = ""
    if normalized[0].isdigit():
        before = r"(?<!\d)"
    elif value[0].isspace():
        before = r"(?<!\w)"
    if normalized[-1].isdigit():
        after = r"(?!\d)"
    elif value[-1].isspace():
        after = r"(?!\w)"
    return re.compile(before + re.escape(normalized) + after)
