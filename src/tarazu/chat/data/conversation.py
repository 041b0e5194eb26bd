"""A row of any known schema becomes one `Conversation`: an optional system turn, then questions and answers in turn.

SlimOrca (`conversations` of `from`/`value`/`weight`), OpenAI (`messages` of `role`/`content`), Alpaca
(`instruction`/`input`/`output`) and plain pairs (`prompt`/`response`) are told apart by their keys, row by row. What is
odd is repaired where the meaning is certain and the row is dropped where it is not; both are counted by reason.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from tarazu.chat.data.persian import normalize

ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter", "question"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model", "bot", "chatgpt", "answer"), "assistant"),
}
LISTS = ("conversations", "conversation", "messages", "dialogue", "turns")
PAIRS = (
    ("instruction", ("output", "response", "answer")),
    ("prompt", ("response", "completion", "output", "answer")),
    ("question", ("answer", "response", "output")),
    ("query", ("response", "answer", "output")),
)

MALFORMED = "malformed JSON"
NOT_TEXT = "not UTF-8 text"
WRONG_TYPE = "wrong types"
UNKNOWN_SCHEMA = "no known schema"
UNKNOWN_ROLE = "unknown role"
NO_ANSWER = "no answer"
NO_QUESTION = "no question"
EMPTY_TURN = "empty turn removed"
MERGED = "turns of one role in a row joined"
LATE_SYSTEM = "later system turn joined to the next question"
EARLY_ANSWER = "answer before any question removed"
OPEN_QUESTION = "last question without an answer removed"
MARKERS = "chat template's marks inside the text removed"

# what templates write around turns; in a row's own text it would forge a turn
_FAMILY_MARKERS = (
    "<start_of_turn>", "<end_of_turn>", "<bos>", "<eos>", "<pad>", "<|im_start|>", "<|im_end|>", "<|begin_of_text|>",
    "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>", "<|endoftext|>",
)  # fmt: skip


@dataclass(frozen=True)
class Turn:
    """One message. `train_on` is False on an answer that the row gives weight 0: it is read, never trained on."""

    role: str  # system | user | assistant
    text: str
    train_on: bool = True


@dataclass(frozen=True)
class Conversation:
    """Turns in the order [system] user assistant user assistant ...; every text is normalised, stripped and not empty."""

    turns: tuple[Turn, ...]

    @property
    def exchanges(self) -> int:
        return sum(turn.role == "assistant" for turn in self.turns)


class RowDropped(Exception):
    """A row that cannot be used, with the reason it is counted under."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


@dataclass
class RowIssues:
    """What was repaired and dropped: a count per reason and the first locations of each, however many rows there are."""

    max_locations: int = 20
    counts: dict[tuple[str, str], int] = field(default_factory=dict)
    locations: dict[tuple[str, str], list] = field(default_factory=dict)

    def add(self, kind: str, reason: str, place: int | str, times: int = 1) -> None:
        key = (kind, reason)
        self.counts[key] = self.counts.get(key, 0) + times
        kept = self.locations.setdefault(key, [])
        if len(kept) < self.max_locations:
            kept.append(place)

    def total(self, kind: str) -> int:
        return sum(count for (k, _), count in self.counts.items() if k == kind)

    def as_list(self) -> list[dict]:
        """As data.json wants it, dropped first, then the most frequent."""
        order = sorted(
            self.counts.items(), key=lambda item: (item[0][0] != "dropped", -item[1], item[0][1])
        )
        return [
            {"reason": r, "kind": k, "count": n, "lines": self.locations[k, r]} for (k, r), n in order
        ]

    @classmethod
    def from_list(cls, rows: list[dict]) -> RowIssues:
        new = cls()
        for row in rows:
            new.counts[row["kind"], row["reason"]] = row["count"]
            new.locations[row["kind"], row["reason"]] = list(row["lines"])
        return new


def marker_pattern(special_tokens: Iterable[str] = ()) -> re.Pattern:
    """What may not stand in a row's text: the known families' marks and the marks of the template in use."""
    marks = sorted({*_FAMILY_MARKERS, *filter(None, special_tokens)}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, marks)))


_DEFAULT_MARKERS = marker_pattern()


def parse_row(row: Any, markers: re.Pattern = _DEFAULT_MARKERS) -> tuple[Conversation, set[str]]:
    """The conversation in a raw row and the repairs it needed. Raises `Dropped` with the reason."""
    turns, repairs = [], set()
    for role, value, train_on in _raw_turns(row):
        text, changed = clean(value, markers)
        repairs |= changed
        if text:
            turns.append(Turn(role, text, train_on))
        else:
            repairs.add(EMPTY_TURN)
    turns = _in_order(turns, repairs)
    if not any(turn.role == "assistant" and turn.train_on for turn in turns):
        raise RowDropped(NO_ANSWER if any(turn.role == "user" for turn in turns) else NO_QUESTION)
    return Conversation(tuple(turns)), repairs


def clean(text: str, markers: re.Pattern = _DEFAULT_MARKERS) -> tuple[str, set[str]]:
    """A turn's text, normalised, without template marks, stripped (templates strip it too)."""
    text, repairs = normalize(text)
    while markers.search(text):  # again, because removing one may join the halves of another
        text = markers.sub("", text)
        repairs.add(MARKERS)
    if MARKERS in repairs:  # what stood on both sides now meets
        text = normalize(text)[0]
    return text.strip(), repairs


def _raw_turns(row: Any) -> list[tuple[str, str, bool]]:
    """(role, text, train_on) of every turn as the row has it, whatever its schema."""
    if isinstance(row, list):
        return [_turn(item) for item in row]
    if not isinstance(row, dict):
        raise RowDropped(WRONG_TYPE)
    for key in LISTS:
        if row.get(key) is not None:
            return [_turn(item) for item in _list(row[key])]
    for question_key, answer_keys in PAIRS:
        if question_key in row:
            return _pair(row, question_key, answer_keys)
    raise RowDropped(UNKNOWN_SCHEMA)


def _list(value: Any) -> list:
    if isinstance(value, str) and value.lstrip().startswith(
        "["
    ):  # a CSV cell holds the list as JSON
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise RowDropped(MALFORMED) from None
    if not isinstance(value, list):
        raise RowDropped(WRONG_TYPE)
    return value


def _turn(item: Any) -> tuple[str, str, bool]:
    if not isinstance(item, dict):
        raise RowDropped(WRONG_TYPE)
    name = _first(item, ("from", "role", "speaker"))
    if not isinstance(name, str) or name.strip().lower() not in ROLES:
        raise RowDropped(UNKNOWN_ROLE if isinstance(name, str | None) else WRONG_TYPE)
    role = ROLES[name.strip().lower()]
    weight = item.get("weight")
    if weight is not None and (isinstance(weight, bool) or not isinstance(weight, int | float)):
        raise RowDropped(WRONG_TYPE)
    return (
        role,
        _text(_first(item, ("value", "content", "text"))),
        not (role == "assistant" and weight == 0),
    )


def _pair(
    row: dict, question_key: str, answer_keys: tuple[str, ...]
) -> list[tuple[str, str, bool]]:
    question = "\n\n".join(
        part for part in (_text(row[question_key]), _text(row.get("input"))) if part.strip()
    )
    turns = [("user", question, True), ("assistant", _text(_first(row, answer_keys)), True)]
    earlier = _list(row["history"]) if row.get("history") else []
    for pair in reversed(earlier):
        if not isinstance(pair, list) or len(pair) != 2:
            raise RowDropped(WRONG_TYPE)
        turns[:0] = [("user", _text(pair[0]), True), ("assistant", _text(pair[1]), True)]
    system = _text(_first(row, ("system", "system_prompt")))
    return [("system", system, True), *turns] if system.strip() else turns


def _first(item: dict, keys: tuple[str, ...]) -> Any:
    return next((item[key] for key in keys if item.get(key) is not None), None)


def _text(value: Any) -> str:
    """A turn's text; OpenAI also writes it as a list of parts, of which only text can be train_oned from here."""
    if value is None:
        return ""
    if isinstance(value, list) and all(
        isinstance(p, dict) and isinstance(p.get("text"), str) for p in value
    ):
        return "\n".join(part["text"] for part in value)
    if not isinstance(value, str):
        raise RowDropped(WRONG_TYPE)
    return value


def _in_order(turns: list[Turn], repairs: set[str]) -> list[Turn]:
    """[system] user assistant user assistant ...: what templates can write and the loss can be laid on."""
    ordered: list[Turn] = []
    for turn in turns:
        role, before = turn.role, ordered[-1].role if ordered else None
        if role == "system" and before not in (None, "system"):
            repairs.add(LATE_SYSTEM)
            role = "user"
        if role == "assistant" and before in (None, "system"):
            repairs.add(EARLY_ANSWER)
        elif role == before:
            repairs.add(MERGED)
            ordered[-1] = Turn(
                role, f"{ordered[-1].text}\n\n{turn.text}", ordered[-1].train_on and turn.train_on
            )
        else:
            ordered.append(Turn(role, turn.text, turn.train_on))
    if ordered and ordered[-1].role == "user" and len(ordered) > 2:
        repairs.add(OPEN_QUESTION)
        ordered.pop()
    return ordered
