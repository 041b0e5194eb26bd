"""Reading comprehension, where answers are right or wrong: exact match and token F1, unanswerable questions apart.

As SQuAD counts it (Rajpurkar et al. 2016, arXiv:1606.05250; 2.0: 2018, arXiv:1806.03822), after a Persian folding:
ye and kaf, digits, half-spaces, vowel signs and punctuation do not decide. No articles are removed: Persian has none.
A question is unanswerable when its reference says so in one of the recipe's words; the answer must then say so as well.
"""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tarazu.chat.data import sources as raw
from tarazu.chat.data.conversation import Conversation, RowDropped, parse_row
from tarazu.chat.data.persian import normalize_for_matching
from tarazu.errors import UserError

if TYPE_CHECKING:
    from tarazu.chat.data.chat_template import Template
    from tarazu.chat.settings import Reading


def prepare(settings: Reading, template: Template) -> list[dict]:
    """The questions as samples.jsonl has them, before they are answered: drawn by the hash of what they ask, so that
    neither their order in the file nor a repeated row decides. Raises `UserError` when no row can be used."""
    found: dict[bytes, Conversation] = {}
    for _, row in raw.iter_rows(settings.source):
        try:
            conversation = (
                None if isinstance(row, raw.UnreadableRow) else parse_row(row, template.markers)[0]
            )
        except RowDropped:
            continue
        if conversation is None:
            continue
        key = _key(conversation, settings.seed)
        if (
            key not in found and len(found) >= 4 * settings.rows
        ):  # a stream may be long: keep what can still be drawn
            found = {k: found[k] for k in heapq.nsmallest(settings.rows, found)}
        found.setdefault(key, conversation)
    if not found:
        raise UserError(
            "no row with a question and an answer",
            location=settings.source,
            hint="see `tarazu check` for the known schemas: reading.source",
        )
    chosen = [found[key] for key in heapq.nsmallest(settings.rows, found)]
    return [_sample(conversation, number) for number, conversation in enumerate(chosen)]


def describe(settings: Reading, asked: Sequence[dict]) -> dict:
    """For data.json."""
    said = "\0".join(sample["turns"][-1]["text"] + "\0" + sample["reference"] for sample in asked)
    unanswerable = sum(abstains(sample["reference"], settings.unanswerable) for sample in asked)
    name = Path(settings.source).name if raw.local_path(settings.source).exists() else settings.source
    return {
        "source": name,
        "sha256": hashlib.sha256(said.encode()).hexdigest(),
        "rows": len(asked),
        "unanswerable": unanswerable,
    }


def exact_match(output: str, reference: str) -> float:
    """1 when both say the same after folding, else 0."""
    return float(normalize_for_matching(output) == normalize_for_matching(reference))


def token_f1(output: str, reference: str) -> float:
    """SQuAD's F1 over folded words, 0..1; where either is empty, 1 if both are."""
    ours, theirs = (normalize_for_matching(text).split() for text in (output, reference))
    if not ours or not theirs:
        return float(ours == theirs)
    common = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * common / (len(ours) + len(theirs))  # = 2PR / (P + R)


def abstains(text: str, unanswerable: Sequence[str]) -> bool:
    """Whether a text says, in one of these ways, that the passage has no answer."""
    folded = f" {normalize_for_matching(text)} "
    return any(f" {normalize_for_matching(way)} " in folded for way in unanswerable)


def score(output: str, reference: str, unanswerable: Sequence[str]) -> dict[str, float | bool]:
    """`exact_match` and `f1` (0..1) of one answer, whether the question is `answerable`, and whether it `abstained`."""
    abstained = abstains(output, unanswerable)
    if abstains(reference, unanswerable):
        return {
            "exact_match": float(abstained),
            "f1": float(abstained),
            "answerable": False,
            "abstained": abstained,
        }
    if abstained:  # words that it may share with the reference earn nothing
        return {"exact_match": 0.0, "f1": 0.0, "answerable": True, "abstained": True}
    return {
        "exact_match": exact_match(output, reference),
        "f1": token_f1(output, reference),
        "answerable": True,
        "abstained": False,
    }


def aggregate(scores: Sequence[dict]) -> dict:
    """As metrics.json has it, 0..1: over all questions, over either kind, and [exact match, F1, answerable] of each."""
    kinds = {
        "answerable": [s for s in scores if s["answerable"]],
        "unanswerable": [s for s in scores if not s["answerable"]],
    }
    items = [[s["exact_match"], s["f1"], int(s["answerable"])] for s in scores]
    return {
        **_means(scores),
        **{kind: _means(chosen) for kind, chosen in kinds.items()},
        "items": items,
    }


def _means(scores: Sequence[dict]) -> dict:
    """Counts and means; null where there is nothing to average."""
    names = ("exact_match", "f1", "abstained")
    return {
        "n": len(scores),
        **{name: sum(s[name] for s in scores) / len(scores) if scores else None for name in names},
    }


def _key(conversation: Conversation, seed: int) -> bytes:
    said = "\0".join(turn.text for turn in _asked(conversation))
    return hashlib.blake2b(f"{seed}\0{said}".encode(), digest_size=16).digest()


def _asked(conversation: Conversation) -> tuple:
    last = max(i for i, turn in enumerate(conversation.turns) if turn.role == "assistant")
    return conversation.turns[:last]


def _sample(conversation: Conversation, number: int) -> dict:
    asked = _asked(conversation)
    reference = conversation.turns[len(asked)].text
    turns = [{"role": turn.role, "text": turn.text} for turn in asked]
    return {
        "id": f"reading-{number:04d}",
        "from": "reading",
        "ability": None,
        "turns": turns,
        "reference": reference,
        "good": None,
    }
