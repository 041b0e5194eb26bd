"""The structure of a data set in numbers (T1.2): turns, roles, lengths, English, duplicates, truncation.

Every row leaves a few integers (`measure`); everything else is computed from these columns, so a million rows cost
some megabytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tarazu.chat.data.persian import letter_counts, words

if TYPE_CHECKING:
    from tarazu.chat.data.chat_template import Encoded
    from tarazu.chat.data.conversation import Conversation

COLUMNS = ("exchanges", "answers", "system", "characters", "words", "answer_words", "latin", "letters",
           "tokens", "answer_tokens", "truncated", "answer_bytes")  # fmt: skip
BINS = 24


def row_statistics(conversation: Conversation, encoded: Encoded) -> dict[str, int]:
    """One row's integers, named as in `COLUMNS`.

    `answers` are those under the loss; `tokens`, `answer_tokens` and `answer_bytes` what is kept, `truncated` what is not.
    """
    turns = conversation.turns
    shares = [letter_counts(turn.text) for turn in turns]
    counts = [len(words(turn.text)) for turn in turns]
    return {
        "exchanges": conversation.exchanges,
        "answers": sum(turn.role == "assistant" and turn.train_on for turn in turns),
        "system": int(turns[0].role == "system"),
        "characters": sum(len(turn.text) for turn in turns),
        "words": sum(counts),
        "answer_words": sum(
            n for n, turn in zip(counts, turns, strict=True) if turn.role == "assistant" and turn.train_on
        ),
        "latin": sum(s.latin for s in shares),
        "letters": sum(s.letters for s in shares),
        "tokens": len(encoded.ids),
        "answer_tokens": int(encoded.supervised.sum()),
        "truncated": encoded.num_truncated,
        "answer_bytes": encoded.answer_bytes,
    }


def describe(columns: dict[str, np.ndarray], duplicates: int) -> dict:
    """data.json's `structure`. Lengths are per row and, in tokens, before truncation; a turn here is one exchange.

    Args:
        columns: arrays (rows,) by the names of `COLUMNS`.
        duplicates: rows that said exactly what an earlier one did.
    """
    tokens = columns["tokens"] + columns["truncated"]
    whole = columns["truncated"] == 0  # of a cut row, the words of the answer that is left are not known
    answer_words = int(columns["answer_words"][whole].sum())
    ends = int(columns["answers"][whole].sum())  # every answer ends in one token that is no text
    answer_text_tokens = int(columns["answer_tokens"][whole].sum()) - ends
    exchanges, how_many = np.unique(columns["exchanges"], return_counts=True)
    total_exchanges = int(columns["exchanges"].sum())
    return {
        "rows": len(tokens),
        "turns_per_row": {str(n): int(count) for n, count in zip(exchanges, how_many, strict=True)},
        "roles": {
            "system": int(columns["system"].sum()),
            "user": total_exchanges,
            "assistant": total_exchanges,
        },
        "lengths": {
            "characters": lengths(columns["characters"]),
            "words": lengths(columns["words"]),
            "tokens": lengths(tokens),
            "answer_tokens": lengths(columns["answer_tokens"]),
        },
        "tokens_per_word": _ratio(answer_text_tokens, answer_words),
        "english_fraction": _ratio(columns["latin"].sum(), columns["letters"].sum()),
        "duplicates": int(duplicates),
        "truncated_rows": int((columns["truncated"] > 0).sum()),
        "truncated_token_fraction": _ratio(columns["truncated"].sum(), tokens.sum()),
    }


def lengths(values: np.ndarray) -> dict:
    """Mean, quantiles and a histogram whose last bin reaches from the 99th percentile to the longest row."""
    if not len(values):
        return {
            "mean": None,
            "p50": None,
            "p90": None,
            "p99": None,
            "max": None,
            "histogram": {"edges": [], "counts": []},
        }
    p50, p90, p99 = (float(q) for q in np.percentile(values, (50, 90, 99)))
    lowest, highest = int(values.min()), int(values.max())
    edges = np.unique(np.ceil(np.linspace(lowest, max(p99, lowest + 1), BINS)).astype(int))
    if highest >= edges[-1]:
        edges = np.append(edges, highest + 1)
    counts, _ = np.histogram(values, edges)
    return {
        "mean": float(values.mean()), "p50": p50, "p90": p90, "p99": p99, "max": highest,
        "histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
    }  # fmt: skip


def _ratio(part: float, whole: float) -> float | None:
    return float(part) / float(whole) if whole else None
