"""The designed questions: what is asked, what a good answer has, and the checks that a program can make of it.

A check sees the answer normalised, with digits as 0-9 and without half-spaces, so that ways of writing do not decide;
an empty answer passes none, not even "says nothing wrong".
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Literal

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
    text_fa: str = Field(min_length=1)
    text_en: str = Field(min_length=1)


class Values(_Check):
    """Any, all or none of the values stand in the answer; a value that ends in a digit or a space ends a word there."""

    kind: Literal["any_of", "all_of", "none_of"]
    values: list[str] = Field(min_length=1)

    @field_validator("values")
    @classmethod
    def _something(cls, values: list[str]) -> list[str]:
        if not all(normalize_for_matching(value) for value in values):
            raise ValueError("a value has no letter or digit")
        return values

    def passed(self, answer: str) -> bool:
        text = normalize_for_matching(answer)
        found = [_pattern(value).search(text) is not None for value in self.values]
        return {"any_of": any(found), "all_of": all(found), "none_of": not any(found)}[self.kind]


class Pattern(_Check):
    """A regular expression is found in the answer."""

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
        return re.search(self.pattern, normalize(answer)[0].translate(_DIGITS)) is not None


class Length(_Check):
    """At most or at least so many words, or exactly so many lines that are not empty."""

    kind: Literal["max_words", "min_words", "lines"]
    value: PositiveInt

    def passed(self, answer: str) -> bool:
        if self.kind == "lines":
            return sum(bool(line.strip()) for line in answer.splitlines()) == self.value
        count = len(words(answer))
        return count <= self.value if self.kind == "max_words" else count >= self.value


class Json(_Check):
    """The answer is one JSON object with these keys; a code fence around it is allowed."""

    kind: Literal["json"]
    keys: list[str] = []

    def passed(self, answer: str) -> bool:
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
        shares = letter_counts(answer)
        return (shares.arabic if self.value == "fa" else shares.latin) * 2 > shares.letters


Check = Annotated[Values | Pattern | Length | Json | Script, Field(discriminator="kind")]


class Question(StrictModel):
    """One designed question of one ability (facts, reasoning, summary, ...)."""

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
            raise ValueError(
                "two checks have the same text_en: it is the name that results are kept under"
            )
        return self

    def sample(self) -> dict:
        """As samples.jsonl (chat) has it, before it is answered."""
        turns = [{"role": "system", "text": self.system}] if self.system else []
        turns.append({"role": "user", "text": self.prompt})
        return {"id": self.id, "from": "questions", "ability": self.ability, "turns": turns, "reference": None,
                "good": self.good_fa, "good_en": self.good_en, "checks_fa": {c.text_en: c.text_fa for c in self.checks}}  # fmt: skip


_QUESTION = TypeAdapter(Question)


def load(path: str | Path) -> list[Question]:
    """The questions of a JSON-lines file. Raises `UserError` with file:line for what cannot be used."""
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
            raise UserError(f"the id {question.id!r} is there twice", location=f"{path}:{number}")
        questions[question.id] = question
    if not questions:
        raise UserError("there is no question in this file", location=str(path))
    return list(questions.values())


def check(question: Question, answer: str) -> dict[str, bool]:
    """Which checks an answer passes, by their English text."""
    said = bool(normalize_for_matching(answer))
    return {c.text_en: said and c.passed(answer.strip()) for c in question.checks}


def expected_script(question: Question) -> Literal["fa", "en"]:
    """The script that the answer should be in: what a script check asks for, else Persian."""
    return next((c.value for c in question.checks if isinstance(c, Script)), "fa")


def _parse(line: str, where: str) -> Question:
    try:
        return _QUESTION.validate_json(line)
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(str(part) for part in problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        raise UserError(f"{place}: {message}" if place else message, location=where) from None


def _pattern(value: str) -> re.Pattern:
    folded = normalize_for_matching(value)
    before = r"(?<!\d)" if folded[0].isdigit() else r"(?<!\w)" if value[0].isspace() else ""
    after = r"(?!\d)" if folded[-1].isdigit() else r"(?!\w)" if value[-1].isspace() else ""
    return re.compile(before + re.escape(folded) + after)
