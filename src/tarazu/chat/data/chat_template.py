"""Conversations as tokens: the model's chat template chosen, and rows encoded with it, token by token.

Every template is brought to the same form (`pieces.py`): what opens and closes a system turn, a question and an answer.
So the place of every answer is known without searching, what is fed before an answer is a prefix of the row by
construction, and the loss lies on the answers and their end-of-turn token and on nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from tarazu.chat.data.conversation import Conversation, Turn, clean, marker_pattern
from tarazu.chat.data.template_parts import CHATML, GEMMA, LLAMA3, TemplateParts, infer_parts
from tarazu.errors import UserError

if TYPE_CHECKING:
    import re

    from transformers import PreTrainedTokenizerFast

_FAMILIES = (  # model_type begins with, name, template, what the vocabulary must have
    ("gemma", "Gemma", GEMMA, ("<start_of_turn>", "<end_of_turn>")),
    ("llama", "Llama 3", LLAMA3, ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")),
)


@dataclass(frozen=True)
class Encoded:
    """One row: `ids` (T,) int32, `supervised` (T,) bool, UTF-8 bytes of the answers under the loss, tokens cut off."""

    ids: np.ndarray
    supervised: np.ndarray
    answer_bytes: int
    num_truncated: int = 0


@dataclass
class Template:
    """A tokenizer with its template. Make one with `choose`."""

    tokenizer: PreTrainedTokenizerFast
    parts: TemplateParts
    name: str  # gemma | llama3 | chatml | tokenizer
    reason: str
    add_bos: bool = (
        False  # the tokenizer begins texts with a token that the template does not write
    )
    markers: re.Pattern = field(init=False)
    split_at_answers: bool = field(init=False)

    def __post_init__(self) -> None:
        # not every special token: <mask> and the like are harmless, and some data sets mean them
        written = self.parts.render((Turn("system", ""), Turn("user", ""), Turn("assistant", "")))[0]
        special = [
            token.content
            for token in self.tokenizer.added_tokens_decoder.values()
            if token.content in written
        ]
        own = (self.tokenizer.bos_token, self.tokenizer.eos_token, self.tokenizer.pad_token)
        self.markers = marker_pattern(t for t in (*special, *own) if t and t.strip())
        self.split_at_answers = self._cutting_is_harmless()

    def describe(self) -> dict:
        """What decides the tokens, for the cache key and the record."""
        return {"name": self.name, "add_bos": self.add_bos, "split_at_answers": self.split_at_answers, **asdict(self.parts)}

    @property
    def stop_ids(self) -> list[int]:
        """Tokens that end an answer: the end of turn, and the end of text."""
        ids = [self._ids(self.parts.end_of_turn)[0], self.tokenizer.eos_token_id]
        return sorted({i for i in ids if i is not None})

    def encode(self, conversation: Conversation, max_length: int | None = None) -> Encoded:
        """The row's tokens, cut at `max_length`. The texts are cleaned first, so that none can forge a turn."""
        return self.encode_batch([Conversation(self._cleaned(conversation.turns))], max_length)[0]

    def encode_batch(
        self, conversations: Sequence[Conversation], max_length: int | None = None
    ) -> list[Encoded]:
        """As `encode` for rows that `understand` has cleaned with this template's `markers`, in one threaded call."""
        written = [self.parts.render(c.turns) for c in conversations]
        parts = [self._parts(text, [start for start, _, _ in spans]) for text, spans in written]
        flat = [part for row in parts for part in row]
        encoding = (
            self.tokenizer(flat, add_special_tokens=False, return_offsets_mapping=True)
            if flat
            else None
        )
        rows, at = [], 0
        for conversation, (text, spans), row_parts in zip(
            conversations, written, parts, strict=True
        ):
            ids, offsets, base = [], [], 0
            for i, part in enumerate(row_parts, at):
                ids.extend(encoding["input_ids"][i])
                offsets.extend((base + a, base + b) for a, b in encoding["offset_mapping"][i])
                base += len(part)
            at += len(row_parts)
            learn = [turn.train_on for turn in conversation.turns if turn.role == "assistant"]
            rows.append(
                self._mask(
                    text,
                    ids,
                    offsets,
                    [s for s, keep in zip(spans, learn, strict=True) if keep],
                    max_length,
                )
            )
        return rows

    def encode_prompt(self, turns: Sequence[Turn]) -> list[int]:
        """Tokens up to where the answer begins: exactly the first tokens of the row that has this answer."""
        cleaned = self._cleaned(turns)
        starts = [start for start, _, _ in self.parts.render(cleaned)[1]]
        ids = [
            i
            for part in self._parts(self.parts.render_prompt(cleaned), starts)
            for i in self._ids(part)
        ]
        return self._begun(ids)

    def _cleaned(self, turns: Sequence[Turn]) -> tuple[Turn, ...]:
        return tuple(replace(turn, text=clean(turn.text, self.markers)[0]) for turn in turns)

    def _mask(
        self, text: str, ids: list[int], offsets: list, spans: list, max_length: int | None
    ) -> Encoded:
        supervised = np.zeros(len(ids), dtype=bool)
        starts = np.array([a for a, _ in offsets], dtype=np.int64)
        ends = np.array([b for _, b in offsets], dtype=np.int64)
        for start, _, end in spans:
            supervised |= (starts < end) & (ends > start)
        if self._begun(ids) is not ids:
            ids, supervised = self._begun(ids), np.concatenate(([False], supervised))
            ends = np.concatenate(([0], ends))
        kept = len(ids) if max_length is None else min(len(ids), max_length)
        seen = int(ends[kept - 1]) if kept else 0
        answers = (text[start : min(end, seen)] for start, end, _ in spans)
        answer_bytes = sum(len(answer.encode("utf-8", "ignore")) for answer in answers)
        return Encoded(
            np.array(ids[:kept], dtype=np.int32), supervised[:kept], answer_bytes, len(ids) - kept
        )

    def _parts(self, text: str, cuts: list[int]) -> list[str]:
        """The text cut where answers begin, so that no token and no look-ahead of the tokenizer crosses that place."""
        edges = [0, *cuts, len(text)] if self.split_at_answers else [0, len(text)]
        return [text[a:b] for a, b in zip(edges, edges[1:], strict=False) if a < b]

    def _cutting_is_harmless(self) -> bool:
        """False for tokenizers that put a space before every text they are given: those read the row in one piece."""
        prompt = self.parts.assistant_open
        return self._ids(prompt + "سلام.") == self._ids(prompt) + self._ids(
            "سلام."
        ) or not self._prefix_is_stable(prompt)

    def _prefix_is_stable(self, prompt: str) -> bool:
        alone = self._ids(prompt)
        return self._ids(prompt + "سلام.")[: len(alone)] == alone

    def _begun(self, ids: list[int]) -> list[int]:
        bos = self.tokenizer.bos_token_id
        return [bos, *ids] if self.add_bos and ids[:1] != [bos] else ids

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]


def select_template(tokenizer: PreTrainedTokenizerFast, model_type: str | None = None) -> Template:
    """The tokenizer's own chat template, else the family's, else ChatML, with the reason for the choice.

    Args:
        model_type: `config.model_type` of the model ("gemma3_text", "llama", ...), if known.
    Raises: `UserError` for a tokenizer without the Rust backend: places of tokens in the text are needed.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise UserError("this tokenizer has no fast version, so the place of its tokens in the text is unknown",
                       location=str(tokenizer.name_or_path), hint="use a model with a tokenizer.json")  # fmt: skip
    why_not = "the tokenizer has no chat template"
    if tokenizer.chat_template:
        try:
            pieces = infer_parts(tokenizer)
            return _template(tokenizer, pieces, "tokenizer", "the tokenizer's own chat template")
        except ValueError as error:
            why_not = f"the tokenizer's own chat template cannot be used ({error})"
    for family, title, pieces, marks in _FAMILIES:
        if (not model_type or model_type.startswith(family)) and _has(tokenizer, *marks):
            pieces = replace(pieces, start=tokenizer.bos_token or "")
            return _template(
                tokenizer,
                pieces,
                title.lower().replace(" ", ""),
                f"{why_not}; that of {title} is used",
            )
    return _chatml(tokenizer, why_not)


def _has(tokenizer: PreTrainedTokenizerFast, *tokens: str) -> bool:
    vocabulary = tokenizer.get_vocab()
    return all(token in vocabulary for token in tokens)


def _template(
    tokenizer: PreTrainedTokenizerFast, pieces: TemplateParts, name: str, reason: str
) -> Template:
    begun = tokenizer("a")["input_ids"][:1]
    return Template(
        tokenizer,
        pieces,
        name,
        reason,
        add_bos=tokenizer.bos_token_id is not None and begun == [tokenizer.bos_token_id],
    )


def _chatml(tokenizer: PreTrainedTokenizerFast, why_not: str) -> Template:
    end = "<|im_end|>" if _has(tokenizer, "<|im_end|>") else tokenizer.eos_token
    if not end:
        what = "the tokenizer has neither a chat template nor an end-of-text token"
        raise UserError(
            what, location=str(tokenizer.name_or_path), hint="use a tokenizer that names its eos_token"
        )
    pieces = replace(CHATML, user_close=f"{end}\n", end_of_turn=end, system_close=f"{end}\n")
    return _template(
        tokenizer,
        pieces,
        "chatml",
        f"{why_not}, and its vocabulary has no known family's marks; ChatML is used, ending turns with {end}",
    )
