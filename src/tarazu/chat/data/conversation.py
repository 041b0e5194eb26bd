"""Read SlimOrca, OpenAI and Alpaca rows, and plain pairs, as `Conversation`.

A conversation is [system] user assistant user assistant ... The keys of a row tell its schema:

    SlimOrca      {"conversations": [{"from": "human", "value": ..., "weight": 0 | 1}, ...]}
    OpenAI        {"messages": [{"role": "user", "content": ...}, ...]}
    Alpaca        {"instruction": ..., "input": ..., "output": ..., "history": [[..., ...], ...]}
    plain pairs   {"prompt": ..., "response": ...} and the like

A row with a fault is repaired if its meaning is certain, and dropped if not. Both are counted by
reason.
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
# Keys that hold a list of turns, and pairs of keys that hold a question and its answer.
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

# Templates write these around turns. In the text of a row they would forge a turn.
_FAMILY_MARKERS = (
    "<start_of_turn>",
    "<end_of_turn>",
    "<bos>",
    "<eos>",
    "<pad>",
    "<|im_start|>",
    "<|im_end|>",
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|endoftext|>",
)


@dataclass(frozen=True)
class Turn:
    """One message.

    Args:
        role: system, user or assistant.
        text: the message.
        train_on: False for an answer of weight 0, which is context only.
    """

    role: str
    text: str
    train_on: bool = True


@dataclass(frozen=True)
class Conversation:
    """Turns in the order [system] user assistant user assistant ...; no text is empty."""

    turns: tuple[Turn, ...]

    @property
    def exchanges(self) -> int:
        """Pairs of a question and an answer."""
        return sum(turn.role == "assistant" for turn in self.turns)


class RowDropped(Exception):
    """A row that cannot be used, with the reason that it is counted under."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


@dataclass
class RowIssues:
    """Counts of repaired and dropped rows by reason, with the locations of the first ones.

    Args:
        max_locations: locations kept for each reason, so that memory stays bounded.
        counts: number of rows by (kind, reason); kind is "repaired" or "dropped".
        locations: the first locations by (kind, reason).
    """

    max_locations: int = 20
    counts: dict[tuple[str, str], int] = field(default_factory=dict)
    locations: dict[tuple[str, str], list[int | str]] = field(default_factory=dict)

    def add(self, kind: str, reason: str, location: int | str) -> None:
        """Count one row."""
        key = (kind, reason)
        self.counts[key] = self.counts.get(key, 0) + 1
        locations = self.locations.setdefault(key, [])
        if len(locations) < self.max_locations:
            locations.append(location)

    def as_list(self) -> list[dict[str, Any]]:
        """As `data.json` holds them: dropped rows first, then by falling count."""
        keys = sorted(self.counts, key=lambda key: (key[0] != "dropped", -self.counts[key], key[1]))
        return [
            {
                "reason": reason,
                "kind": kind,
                "count": self.counts[kind, reason],
                "lines": self.locations[kind, reason],
            }
            for kind, reason in keys
        ]

    @classmethod
    def from_list(cls, rows: list[dict[str, Any]]) -> RowIssues:
        """The inverse of `as_list`."""
        issues = cls()
        for row in rows:
            issues.counts[row["kind"], row["reason"]] = row["count"]
            issues.locations[row["kind"], row["reason"]] = list(row["lines"])
        return issues


def marker_pattern(special_tokens: Iterable[str] = ()) -> re.Pattern[str]:
    """A pattern of what must not be in a row's text: markers of known families and these tokens."""
    markers = {*_FAMILY_MARKERS, *filter(None, special_tokens)}
    return re.compile("|".join(map(re.escape, sorted(markers, key=len, reverse=True))))


_DEFAULT_MARKERS = marker_pattern()


def parse_row(
    row: Any, markers: re.Pattern[str] = _DEFAULT_MARKERS
) -> tuple[Conversation, set[str]]:
    """Read the conversation in a raw row.

    Args:
        row: the parsed row, of any schema.
        markers: strings to remove from the texts, see `marker_pattern`.

    Returns:
        The conversation, and the names of the repairs that it needed.

    Raises:
        RowDropped: the row has no known schema, or no answer to train on.
    """
    turns: list[Turn] = []
    repairs: set[str] = set()
    for raw_turn in _raw_turns(row):
        text, text_repairs = clean(raw_turn.text, markers)
        repairs |= text_repairs
        if text:
            turns.append(Turn(raw_turn.role, text, raw_turn.train_on))
        else:
            repairs.add(EMPTY_TURN)
    turns = _in_order(turns, repairs)
    if not any(turn.role == "assistant" and turn.train_on for turn in turns):
        raise RowDropped(NO_ANSWER if any(turn.role == "user" for turn in turns) else NO_QUESTION)
    return Conversation(tuple(turns)), repairs


def clean(text: str, markers: re.Pattern[str] = _DEFAULT_MARKERS) -> tuple[str, set[str]]:
    """Normalize a text, remove template markers and strip it, as templates do.

    Returns:
        The text, and the names of the repairs that it needed.
    """
    text, repairs = normalize(text)
    while markers.search(text):  # removing a marker may join the halves of another
        text = markers.sub("", text)
        repairs.add(MARKERS)
    if MARKERS in repairs:  # the characters on both sides of a marker are now neighbours
        text = normalize(text)[0]
    return text.strip(), repairs


def _raw_turns(row: Any) -> list[Turn]:
    """The turns as the row has them, whatever its schema; not cleaned yet."""
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


def _list(value: Any) -> list[Any]:
    """A list, or a string that holds one as JSON, as a CSV cell does."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise RowDropped(MALFORMED) from None
    if not isinstance(value, list):
        raise RowDropped(WRONG_TYPE)
    return value


def _turn(item: Any) -> Turn:
    """One item of a list of turns."""
    if not isinstance(item, dict):
        raise RowDropped(WRONG_TYPE)
    name = _first(item, ("from", "role", "speaker"))
    if not isinstance(name, str) or name.strip().lower() not in ROLES:
        raise RowDropped(UNKNOWN_ROLE if isinstance(name, str | None) else WRONG_TYPE)
    role = ROLES[name.strip().lower()]
    weight = item.get("weight")
    if weight is not None and (isinstance(weight, bool) or not isinstance(weight, int | float)):
        raise RowDropped(WRONG_TYPE)
    text = _text(_first(item, ("value", "content", "text")))
    return Turn(role, text, train_on=not (role == "assistant" and weight == 0))


def _pair(row: dict[str, Any], question_key: str, answer_keys: tuple[str, ...]) -> list[Turn]:
    """The turns of a row with a question and an answer, as in Alpaca."""
    question_parts = (_text(row[question_key]), _text(row.get("input")))
    question = "\n\n".join(part for part in question_parts if part.strip())
    turns = [Turn("user", question), Turn("assistant", _text(_first(row, answer_keys)))]
    earlier = _list(row["history"]) if row.get("history") else []
    for pair in reversed(earlier):
        if not isinstance(pair, list) or len(pair) != 2:
            raise RowDropped(WRONG_TYPE)
        turns[:0] = [Turn("user", _text(pair[0])), Turn("assistant", _text(pair[1]))]
    system = _text(_first(row, ("system", "system_prompt")))
    return [Turn("system", system), *turns] if system.strip() else turns


def _first(item: dict[str, Any], keys: tuple[str, ...]) -> Any:
    """The first value that is there, or None."""
    return next((item[key] for key in keys if item.get(key) is not None), None)


def _text(value: Any) -> str:
    """A turn's text.

    OpenAI also writes it as a list of parts, of which only text parts are usable.
    """
    if value is None:
        return ""
    if isinstance(value, list) and all(
        isinstance(part, dict) and isinstance(part.get("text"), str) for part in value
    ):
        return "\n".join(part["text"] for part in value)
    if not isinstance(value, str):
        raise RowDropped(WRONG_TYPE)
    return value


def _in_order(turns: list[Turn], repairs: set[str]) -> list[Turn]:
    """The turns as [system] user assistant user assistant ..., which every template can render.

    Adds the names of its repairs to `repairs`.
    """
    ordered: list[Turn] = []
    for turn in turns:
        role, previous = turn.role, ordered[-1].role if ordered else None
        if role == "system" and previous not in (None, "system"):
            repairs.add(LATE_SYSTEM)
            role = "user"
        if role == "assistant" and previous in (None, "system"):
            repairs.add(EARLY_ANSWER)
        elif role == previous:
            repairs.add(MERGED)
            last = ordered[-1]
            text = f"{last.text}\n\n{turn.text}"
            ordered[-1] = Turn(role, text, last.train_on and turn.train_on)
        else:
            ordered.append(Turn(role, turn.text, turn.train_on))
    if ordered and ordered[-1].role == "user" and len(ordered) > 2:
        repairs.add(OPEN_QUESTION)
        ordered.pop()
    return ordered
