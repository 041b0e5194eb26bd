"""How much of what the model knew is left: its loss on plain text of either language that no method was trained on.

The text stands as it would in use: the beginning-of-text token, then the passage; a soft prompt or prefix stands before
both. The same tokens are scored for every method: without a beginning token the first one is not, not even behind a prompt.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tarazu.chat.data import sources as raw
from tarazu.chat.data.conversation import clean
from tarazu.chat.model.batching import TokenizedRow
from tarazu.errors import UserError

if TYPE_CHECKING:
    from tarazu.chat.data.chat_template import Template
    from tarazu.chat.settings import Forgetting

LANGUAGES = ("english", "persian")


@dataclass(frozen=True)
class Passages:
    """The passages of one language: their tokens, and the UTF-8 bytes that the scored tokens of each stand for."""

    source: str
    sha256: str
    rows: list[TokenizedRow]
    num_bytes: list[int]

    def describe(self) -> dict:
        """For data.json."""
        tokens = sum(int(row.supervised.sum()) for row in self.rows)
        return {
            "source": self.source,
            "sha256": self.sha256,
            "rows": len(self.rows),
            "tokens": tokens,
            "bytes": sum(self.num_bytes),
        }


def prepare(settings: Forgetting, template: Template) -> dict[str, Passages]:
    """The passages of each language that the recipe gives. Raises `UserError` for a source without text."""
    sources = {language: getattr(settings, language) for language in LANGUAGES}
    return {
        language: _passages(source, settings, template)
        for language, source in sources.items()
        if source
    }


def measure(
    passages: dict[str, Passages], nats_of: Callable[[list[TokenizedRow]], list[float]]
) -> dict[str, dict]:
    """For each language its `loss` (nats per token), `bits_per_byte`, and [nats, tokens, bytes] of every passage.

    Args:
        nats_of: the summed loss of each row's supervised tokens, in the rows' order.
    """
    out = {}
    for language, found in passages.items():
        tokens = [int(row.supervised.sum()) for row in found.rows]
        items = [list(item) for item in zip(nats_of(found.rows), tokens, found.num_bytes, strict=True)]
        nats, count, size = (sum(column) for column in zip(*items, strict=True))
        out[language] = {
            "loss": nats / count,
            "bits_per_byte": nats / math.log(2) / size,
            "rows": len(items),
            "row_losses": items,
        }
    return out


def read(source: str) -> Iterable[str]:
    """The passages of a source: paragraphs of a .txt file (blank lines part them), or the `text` of every row."""
    path = raw.local_path(source)
    if path.suffix.lower() != ".txt":
        for place, row in raw.iter_rows(source):
            if not isinstance(row, dict) or not isinstance(row.get("text"), str):
                raise UserError(
                    "a row without `text`",
                    location=f"{source}:{place}",
                    hint='forgetting wants plain text: rows of {"text": ...}, or a .txt file',
                )
            yield row["text"]
        return
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"the text cannot be read: {error}",
            location=str(path),
            hint="give a UTF-8 file, or null: forgetting",
        ) from None
    yield from _paragraphs(lines)


def _paragraphs(lines: list[str]) -> Iterable[str]:
    """Lines up to a blank one, joined."""
    paragraph: list[str] = []
    for line in [*lines, ""]:
        if line.strip():
            paragraph.append(line.strip())
        elif paragraph:
            yield " ".join(paragraph)
            paragraph = []


def _passages(source: str, settings: Forgetting, template: Template) -> Passages:
    rows, num_bytes, digest = [], [], hashlib.sha256()
    for text in islice(read(source), settings.rows):
        text = clean(text, template.markers)[0]
        row, size = _encode(text, template.tokenizer, settings.max_length, len(rows))
        if row.supervised.any():
            rows.append(row)
            num_bytes.append(size)
            digest.update(text.encode() + b"\0")
    if not rows:
        raise UserError(
            "there is no text in it",
            location=source,
            hint="give a file with text, or null: forgetting",
        )
    name = Path(source).name if raw.local_path(source).exists() else source
    return Passages(name, digest.hexdigest(), rows, num_bytes)


def _encode(text: str, tokenizer, max_length: int, index: int) -> tuple[TokenizedRow, int]:
    """The passage's tokens up to `max_length`, and the bytes of the text that the scored ones cover."""
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    kept = encoding["input_ids"][: max_length - len(begin)]
    ids = np.array(begin + kept, dtype=np.int64)
    supervised = np.arange(len(ids)) > 0
    if len(ids) < 2:
        return TokenizedRow(ids, supervised, index), 0
    spans = encoding["offset_mapping"][: len(kept)]
    start = 0 if begin else spans[0][1]
    return TokenizedRow(ids, supervised, index), len(text[start : spans[-1][1]].encode())
