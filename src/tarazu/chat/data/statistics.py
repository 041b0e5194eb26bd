"""Statistics of a data set: turns, roles, lengths, English, duplicates, truncation.

Each row leaves a few integers (`row_statistics`), which the Arrow file holds as columns. `describe`
computes everything else from the columns, so a million rows take some megabytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tarazu.chat.data.persian import letter_counts, words

if TYPE_CHECKING:
    from tarazu.chat.data.chat_template import Encoded
    from tarazu.chat.data.conversation import Conversation

COLUMNS = (
    "exchanges",
    "answers",  # answers under the loss
    "system",
    "characters",
    "words",
    "answer_words",  # words of the answers under the loss
    "latin",  # Latin letters
    "letters",  # all letters
    "tokens",  # tokens kept
    "answer_tokens",  # tokens under the loss, kept
    "truncated",  # tokens cut off at max_length
    "answer_bytes",  # UTF-8 bytes of the answers under the loss, kept
)
NUM_BINS = 24


def row_statistics(conversation: Conversation, encoded: Encoded) -> dict[str, int]:
    """One row's integers, by the names of `COLUMNS`."""
    turns = conversation.turns
    trained_answers = [turn for turn in turns if turn.role == "assistant" and turn.train_on]
    letters = [letter_counts(turn.text) for turn in turns]
    return {
        "exchanges": conversation.exchanges,
        "answers": len(trained_answers),
        "system": int(turns[0].role == "system"),
        "characters": sum(len(turn.text) for turn in turns),
        "words": sum(len(words(turn.text)) for turn in turns),
        "answer_words": sum(len(words(turn.text)) for turn in trained_answers),
        "latin": sum(counts.latin for counts in letters),
        "letters": sum(counts.letters for counts in letters),
        "tokens": len(encoded.ids),
        "answer_tokens": int(encoded.supervised.sum()),
        "truncated": encoded.num_truncated,
        "answer_bytes": encoded.answer_bytes,
    }


def describe(columns: dict[str, np.ndarray], duplicates: int) -> dict[str, Any]:
    """The `structure` of `data.json`.

    Lengths are per row; lengths in tokens are before truncation.

    Args:
        columns: one array (rows,) for each name of `COLUMNS`.
        duplicates: number of rows that repeat an earlier one.
    """
    tokens = columns["tokens"] + columns["truncated"]
    exchanges, counts = np.unique(columns["exchanges"], return_counts=True)
    total_exchanges = int(columns["exchanges"].sum())
    return {
        "rows": len(tokens),
        "turns_per_row": {str(n): int(count) for n, count in zip(exchanges, counts, strict=True)},
        "roles": {
            "system": int(columns["system"].sum()),
            "user": total_exchanges,
            "assistant": total_exchanges,
        },
        "lengths": {
            "characters": length_summary(columns["characters"]),
            "words": length_summary(columns["words"]),
            "tokens": length_summary(tokens),
            "answer_tokens": length_summary(columns["answer_tokens"]),
        },
        "tokens_per_word": _tokens_per_word(columns),
        "english_fraction": _ratio(columns["latin"].sum(), columns["letters"].sum()),
        "duplicates": int(duplicates),
        "truncated_rows": int((columns["truncated"] > 0).sum()),
        "truncated_token_fraction": _ratio(columns["truncated"].sum(), tokens.sum()),
    }


def _tokens_per_word(columns: dict[str, np.ndarray]) -> float | None:
    """Tokens per word of answers, over the rows that are not truncated."""
    complete = columns["truncated"] == 0
    answer_tokens, answers, answer_words = (
        int(columns[name][complete].sum()) for name in ("answer_tokens", "answers", "answer_words")
    )
    # Every answer ends in an end-of-turn token, which is not text.
    return _ratio(answer_tokens - answers, answer_words)


def length_summary(lengths: np.ndarray) -> dict[str, Any]:
    """Mean, quantiles and a histogram of lengths (rows,).

    The last bin of the histogram reaches from the 99th percentile to the longest row.
    """
    if not len(lengths):
        statistics = dict.fromkeys(("mean", "p50", "p90", "p99", "max"))
        return statistics | {"histogram": {"edges": [], "counts": []}}
    p50, p90, p99 = (float(quantile) for quantile in np.percentile(lengths, (50, 90, 99)))
    shortest, longest = int(lengths.min()), int(lengths.max())
    edges = np.linspace(shortest, max(p99, shortest + 1), NUM_BINS)
    edges = np.unique(np.ceil(edges).astype(int))
    if longest >= edges[-1]:
        edges = np.append(edges, longest + 1)
    counts, _ = np.histogram(lengths, edges)
    return {
        "mean": float(lengths.mean()),
        "p50": p50,
        "p90": p90,
        "p99": p99,
        "max": longest,
        "histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
    }


def _ratio(part: float, total: float) -> float | None:
    return float(part) / float(total) if total else None
