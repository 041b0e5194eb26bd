"""Reading comprehension: questions with right answers, scored by exact match and token F1.

The scores are SQuAD's (Rajpurkar et al. 2016, arXiv:1606.05250; 2018, arXiv:1806.03822) after a
Persian normalization: ye and kaf, digits, half-spaces, vowel signs and punctuation do not decide.
Articles are not removed, because Persian has none. A question is unanswerable if its reference says
so in one of the recipe's phrases. The answer must then say so as well.
"""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tarazu.chat.data import sources
from tarazu.chat.data.conversation import Conversation, RowDropped, Turn, parse_row
from tarazu.chat.data.persian import normalize_for_matching
from tarazu.errors import UserError

if TYPE_CHECKING:
    from tarazu.chat.data.chat_template import Template
    from tarazu.chat.settings import Reading

Sample = dict[str, Any]  # a line of samples.jsonl


def prepare(settings: Reading, template: Template) -> list[Sample]:
    """Draw the questions of a source.

    The questions with the smallest seeded hashes of their text are drawn. So neither the order of
    the file nor a repeated row decides.

    Args:
        settings: the source, and how many questions.
        template: its markers are removed from the texts.

    Returns:
        Lines of samples.jsonl, before they are answered.

    Raises:
        UserError: no row can be used.
    """
    drawn: dict[bytes, Conversation] = {}
    for _, row in sources.iter_rows(settings.source):
        if isinstance(row, sources.UnreadableRow):
            continue
        try:
            conversation = parse_row(row, template.markers)[0]
        except RowDropped:
            continue
        key = _key(conversation, settings.seed)
        # A stream may be long. Questions that can no longer be drawn are dropped in batches.
        if key not in drawn and len(drawn) >= 4 * settings.rows:
            drawn = {key: drawn[key] for key in heapq.nsmallest(settings.rows, drawn)}
        drawn.setdefault(key, conversation)
    if not drawn:
        raise UserError(
            "no row with a question and an answer",
            location=settings.source,
            hint="see `tarazu check` for the known schemas: reading.source",
        )
    keys = heapq.nsmallest(settings.rows, drawn)
    return [_sample(drawn[key], number) for number, key in enumerate(keys)]


def describe(settings: Reading, samples: Sequence[Sample]) -> dict[str, Any]:
    """The `reading` of `data.json`: the source, a hash of the questions, and their number."""
    texts = [sample["turns"][-1]["text"] + "\0" + sample["reference"] for sample in samples]
    unanswerable = [abstains(sample["reference"], settings.unanswerable) for sample in samples]
    path = sources.local_path(settings.source)
    return {
        "source": Path(settings.source).name if path.exists() else settings.source,
        "sha256": hashlib.sha256("\0".join(texts).encode()).hexdigest(),
        "rows": len(samples),
        "unanswerable": sum(unanswerable),
    }


def exact_match(output: str, reference: str) -> float:
    """1 if both are equal after normalization, else 0."""
    return float(normalize_for_matching(output) == normalize_for_matching(reference))


def token_f1(output: str, reference: str) -> float:
    """SQuAD's F1 over the bags of normalized words, 0..1. If either is empty, 1 if both are."""
    output_words = normalize_for_matching(output).split()
    reference_words = normalize_for_matching(reference).split()
    if not output_words or not reference_words:
        return float(output_words == reference_words)
    common = sum((Counter(output_words) & Counter(reference_words)).values())
    # = 2 P R / (P + R) with P = common / output words and R = common / reference words
    return 2 * common / (len(output_words) + len(reference_words))


def abstains(text: str, unanswerable: Sequence[str]) -> bool:
    """Whether a text contains one of the phrases for "the passage has no answer"."""
    normalized = f" {normalize_for_matching(text)} "
    return any(f" {normalize_for_matching(phrase)} " in normalized for phrase in unanswerable)


def score(output: str, reference: str, unanswerable: Sequence[str]) -> dict[str, float | bool]:
    """Score one answer.

    Args:
        output: the answer.
        reference: the right answer.
        unanswerable: phrases that say that the passage has no answer.

    Returns:
        `exact_match` and `f1` (0..1), whether the question is `answerable`, and whether the answer
        `abstained`. Abstaining scores 1 on unanswerable questions and 0 on others.
    """
    abstained = abstains(output, unanswerable)
    answerable = not abstains(reference, unanswerable)
    if not answerable or abstained:
        exact = f1 = float(abstained and not answerable)
    else:
        exact, f1 = exact_match(output, reference), token_f1(output, reference)
    return {"exact_match": exact, "f1": f1, "answerable": answerable, "abstained": abstained}


def aggregate(scores: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means of `score`, 0..1, as `metrics.json` holds them.

    Returns:
        Means over all questions, over the answerable and the unanswerable ones, and in `items`
        [exact match, F1, answerable] of each question.
    """
    return {
        **_means(scores),
        "answerable": _means([s for s in scores if s["answerable"]]),
        "unanswerable": _means([s for s in scores if not s["answerable"]]),
        "items": [[s["exact_match"], s["f1"], int(s["answerable"])] for s in scores],
    }


def _means(scores: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The number of questions and their mean scores; None without any."""
    means: dict[str, Any] = {"n": len(scores)}
    for name in ("exact_match", "f1", "abstained"):
        means[name] = sum(s[name] for s in scores) / len(scores) if scores else None
    return means


def _key(conversation: Conversation, seed: int) -> bytes:
    """A seeded hash of what is asked."""
    text = "\0".join(turn.text for turn in _prompt(conversation))
    return hashlib.blake2b(f"{seed}\0{text}".encode(), digest_size=16).digest()


def _prompt(conversation: Conversation) -> tuple[Turn, ...]:
    """The turns before the last answer."""
    turns = conversation.turns
    last = max(i for i, turn in enumerate(turns) if turn.role == "assistant")
    return turns[:last]


def _sample(conversation: Conversation, number: int) -> Sample:
    prompt = _prompt(conversation)
    return {
        "id": f"reading-{number:04d}",
        "from": "reading",
        "ability": None,
        "turns": [{"role": turn.role, "text": turn.text} for turn in prompt],
        "reference": conversation.turns[len(prompt)].text,
        "good": None,
    }
