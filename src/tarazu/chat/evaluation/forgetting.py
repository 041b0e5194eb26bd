"""Forgetting: the loss on plain text in English and Persian that no method trains on.

A passage is scored as the model would read it: the beginning-of-text token, then the text, both
after a soft prompt or prefix. The same tokens are scored for every method. Without a
beginning-of-text token the first token of a passage is not scored, not even after a soft prompt.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tarazu.chat.data import sources
from tarazu.chat.data.conversation import clean
from tarazu.chat.model.batching import TokenizedRow
from tarazu.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tarazu.chat.data.chat_template import Template
    from tarazu.chat.settings import Forgetting

LANGUAGES = ("english", "persian")


@dataclass(frozen=True)
class Passages:
    """The passages of one language.

    Args:
        source: the name of the source.
        sha256: a hash of the texts.
        rows: the tokenized passages.
        num_bytes: for each passage, the UTF-8 bytes that its scored tokens stand for.
    """

    source: str
    sha256: str
    rows: list[TokenizedRow]
    num_bytes: list[int]

    def describe(self) -> dict[str, Any]:
        """For `data.json`."""
        return {
            "source": self.source,
            "sha256": self.sha256,
            "rows": len(self.rows),
            "tokens": sum(int(row.supervised.sum()) for row in self.rows),
            "bytes": sum(self.num_bytes),
        }


def prepare(settings: Forgetting, template: Template) -> dict[str, Passages]:
    """Tokenize the passages of each language that the recipe names.

    Raises:
        UserError: a source cannot be read, or holds no text.
    """
    source_of = {language: getattr(settings, language) for language in LANGUAGES}
    return {
        language: _passages(source, settings, template)
        for language, source in source_of.items()
        if source
    }


def measure(
    passages: dict[str, Passages], loss_sums: Callable[[list[TokenizedRow]], list[float]]
) -> dict[str, dict[str, Any]]:
    """Measure the loss of each language.

    Args:
        passages: by language.
        loss_sums: gives the summed loss (nats) over the scored tokens of each row.

    Returns:
        For each language `loss` (nats per token), `bits_per_byte`, and in `row_losses` [nats,
        tokens, bytes] of each passage.
    """
    results = {}
    for language, texts in passages.items():
        tokens = [int(row.supervised.sum()) for row in texts.rows]
        nats = loss_sums(texts.rows)
        total_nats = sum(nats)
        results[language] = {
            "loss": total_nats / sum(tokens),
            "bits_per_byte": total_nats / math.log(2) / sum(texts.num_bytes),
            "rows": len(tokens),
            "row_losses": [list(row) for row in zip(nats, tokens, texts.num_bytes, strict=True)],
        }
    return results


def read_passages(source: str) -> Iterator[str]:
    """Yield the paragraphs of a .txt file, which blank lines separate, or the `text` of every row.

    Raises:
        UserError: the source cannot be read, or a row has no `text`.
    """
    path = sources.local_path(source)
    if path.suffix.lower() != ".txt":
        for location, row in sources.iter_rows(source):
            if not isinstance(row, dict) or not isinstance(row.get("text"), str):
                raise UserError(
                    "a row without `text`",
                    location=f"{source}:{location}",
                    hint='forgetting needs plain text: rows of {"text": ...}, or a .txt file',
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


def _paragraphs(lines: Iterable[str]) -> Iterator[str]:
    """Runs of non-blank lines, each joined by spaces."""
    paragraph: list[str] = []
    for line in [*lines, ""]:
        if line.strip():
            paragraph.append(line.strip())
        elif paragraph:
            yield " ".join(paragraph)
            paragraph = []


def _passages(source: str, settings: Forgetting, template: Template) -> Passages:
    rows: list[TokenizedRow] = []
    num_bytes: list[int] = []
    digest = hashlib.sha256()
    for raw_text in islice(read_passages(source), settings.rows):
        text = clean(raw_text, template.markers)[0]
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
    name = Path(source).name if sources.local_path(source).exists() else source
    return Passages(name, digest.hexdigest(), rows, num_bytes)


def _encode(
    text: str, tokenizer: PreTrainedTokenizerBase, max_length: int, index: int
) -> tuple[TokenizedRow, int]:
    """The first `max_length` tokens of a passage, and the UTF-8 bytes of the scored ones."""
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    text_ids = encoding["input_ids"][: max_length - len(bos)]
    ids = np.array(bos + text_ids, dtype=np.int64)
    supervised = np.arange(len(ids)) > 0  # nothing predicts the first token
    row = TokenizedRow(ids, supervised, index)
    if len(ids) < 2:
        return row, 0
    offsets = encoding["offset_mapping"][: len(text_ids)]
    start = 0 if bos else offsets[0][1]
    return row, len(text[start : offsets[-1][1]].encode())
