"""Conversations as tokens: choose the model's chat template and encode rows with it.

A row is rendered as one text, tokenized, and marked with the tokens that the loss covers: those of
each answer and its end-of-turn token. For one exchange in Gemma's template (⏎ is a line break):

    <bos><start_of_turn>user⏎Hi<end_of_turn>⏎<start_of_turn>model⏎Hello there<end_of_turn>⏎
                                                                  ^          ^            ^
                                                              start        end  end_of_turn

    token   <bos> <start_of_turn> user ⏎ Hi <end_of_turn> ⏎ <start_of_turn> model ⏎
    mask      0          0         0   0  0       0       0        0          0   0
    token   Hello  there <end_of_turn> ⏎
    mask      1      1         1       0

1. `TemplateParts.render` gives the text and the span (start, end, end_of_turn) of every answer.
2. `_split` divides the text where answers begin; the pieces are tokenized one by one. No token
   crosses the beginning of an answer, so the tokens of a prompt are the first tokens of its row.
3. `_mask` marks a token if its characters overlap an answer's span.
4. The row is cut at `max_length` tokens.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from tarazu.chat.data.conversation import Conversation, Turn, clean, marker_pattern
from tarazu.chat.data.template_parts import (
    CHATML,
    GEMMA,
    LLAMA3,
    AnswerSpan,
    TemplateParts,
    infer_parts,
)
from tarazu.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# (prefix of model_type, name, title, template, tokens that its vocabulary must have)
_FAMILIES = (
    ("gemma", "gemma", "Gemma", GEMMA, ("<start_of_turn>", "<end_of_turn>")),
    (
        "llama",
        "llama3",
        "Llama 3",
        LLAMA3,
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    ),
)
_SAMPLE_ANSWER = "سلام."

Offsets = list[tuple[int, int]]  # for each token, its first character and one past its last


@dataclass(frozen=True)
class Encoded:
    """One tokenized row.

    Args:
        ids: token ids (T,), int32.
        supervised: True for tokens under the loss (T,), bool.
        answer_bytes: UTF-8 bytes of the supervised answers, as far as they were kept.
        num_truncated: tokens cut off at `max_length`.
    """

    ids: np.ndarray
    supervised: np.ndarray
    answer_bytes: int
    num_truncated: int = 0


@dataclass
class Template:
    """A tokenizer with its chat template. Made by `select_template`.

    Args:
        tokenizer: a tokenizer with the Rust backend, which gives character offsets.
        parts: the strings between turns.
        name: gemma, llama3, chatml, or tokenizer for the tokenizer's own.
        reason: why this template was chosen, for the report.
        add_bos: the tokenizer starts every text with a token that the template does not write.

    Attributes:
        markers: matches the template's own strings, which are removed from the rows' texts.
        split_at_answers: whether a row is tokenized in parts; see `_can_split`.
    """

    tokenizer: PreTrainedTokenizerFast
    parts: TemplateParts
    name: str
    reason: str
    add_bos: bool = False
    markers: re.Pattern[str] = field(init=False)
    split_at_answers: bool = field(init=False)

    def __post_init__(self) -> None:
        # Only the special tokens that the template writes are markers. Others, such as <mask>, are
        # harmless, and some data sets use them on purpose.
        empty = (Turn("system", ""), Turn("user", ""), Turn("assistant", ""))
        written = self.parts.render(empty)[0]
        special = [token.content for token in self.tokenizer.added_tokens_decoder.values()]
        markers = [token for token in special if token in written]
        markers += [
            token
            for token in (
                self.tokenizer.bos_token,
                self.tokenizer.eos_token,
                self.tokenizer.pad_token,
            )
            if token
        ]
        self.markers = marker_pattern(token for token in markers if token.strip())
        self.split_at_answers = self._can_split()

    def describe(self) -> dict[str, Any]:
        """Everything that decides the tokens of a row, for the cache key."""
        return {
            "name": self.name,
            "add_bos": self.add_bos,
            "split_at_answers": self.split_at_answers,
            **asdict(self.parts),
        }

    @property
    def stop_ids(self) -> list[int]:
        """Tokens that end an answer: the end of turn and the end of text."""
        ids = [self._ids(self.parts.end_of_turn)[0], self.tokenizer.eos_token_id]
        return sorted({i for i in ids if i is not None})

    def encode(self, conversation: Conversation, max_length: int | None = None) -> Encoded:
        """Tokenize one conversation. Its texts are cleaned first, so that none can forge a turn.

        Args:
            conversation: the turns.
            max_length: tokens to keep; None keeps all.
        """
        return self.encode_batch([Conversation(self._cleaned(conversation.turns))], max_length)[0]

    def encode_batch(
        self, conversations: Sequence[Conversation], max_length: int | None = None
    ) -> list[Encoded]:
        """Tokenize conversations in one multi-threaded call of the tokenizer.

        Args:
            conversations: cleaned conversations, as `parse_row` with this template's `markers`
                gives.
            max_length: tokens to keep of each row; None keeps all.
        """
        # 1. Render each conversation, and split its text where answers begin.
        rendered = [self.parts.render(conversation.turns) for conversation in conversations]
        pieces = [self._split(text, [span.start for span in spans]) for text, spans in rendered]
        flat_pieces = [piece for row in pieces for piece in row]
        if not flat_pieces:
            return []

        # 2. Tokenize the pieces of all rows together.
        encoding = self.tokenizer(
            flat_pieces, add_special_tokens=False, return_offsets_mapping=True
        )
        encoded_pieces = zip(encoding["input_ids"], encoding["offset_mapping"], strict=True)

        # 3. Join the tokens of each row. Offsets become relative to the text of the row.
        rows = []
        for conversation, (text, spans), row_pieces in zip(
            conversations, rendered, pieces, strict=True
        ):
            ids: list[int] = []
            offsets: Offsets = []
            base = 0
            for piece in row_pieces:
                piece_ids, piece_offsets = next(encoded_pieces)
                ids.extend(piece_ids)
                offsets.extend((base + start, base + end) for start, end in piece_offsets)
                base += len(piece)
            answers = [turn for turn in conversation.turns if turn.role == "assistant"]
            trained = [s for s, turn in zip(spans, answers, strict=True) if turn.train_on]
            rows.append(self._mask(text, ids, offsets, trained, max_length))
        return rows

    def encode_prompt(self, turns: Sequence[Turn]) -> list[int]:
        """Token ids before an answer: exactly the first tokens of the row that has this answer."""
        cleaned = self._cleaned(turns)
        starts = [span.start for span in self.parts.render(cleaned)[1]]
        pieces = self._split(self.parts.render_prompt(cleaned), starts)
        return self._with_bos([i for piece in pieces for i in self._ids(piece)])

    def _cleaned(self, turns: Sequence[Turn]) -> tuple[Turn, ...]:
        return tuple(replace(turn, text=clean(turn.text, self.markers)[0]) for turn in turns)

    def _mask(
        self,
        text: str,
        ids: list[int],
        offsets: Offsets,
        spans: list[AnswerSpan],
        max_length: int | None,
    ) -> Encoded:
        """Mark the tokens of the answers at `spans`, and cut the row at `max_length`."""
        starts = np.array([start for start, _ in offsets], dtype=np.int64)
        ends = np.array([end for _, end in offsets], dtype=np.int64)

        # A token is under the loss if it overlaps an answer or its end-of-turn token.
        supervised = np.zeros(len(ids), dtype=bool)
        for span in spans:
            supervised |= (starts < span.end_of_turn) & (ends > span.start)

        with_bos = self._with_bos(ids)
        if len(with_bos) > len(ids):
            supervised = np.concatenate(([False], supervised))
            ends = np.concatenate(([0], ends))

        # Of a cut row, only the part of the answers before the last kept token counts.
        num_kept = len(with_bos) if max_length is None else min(len(with_bos), max_length)
        text_end = int(ends[num_kept - 1]) if num_kept else 0
        answers = [text[span.start : min(span.end, text_end)] for span in spans]
        return Encoded(
            ids=np.array(with_bos[:num_kept], dtype=np.int32),
            supervised=supervised[:num_kept],
            answer_bytes=sum(len(answer.encode("utf-8", "ignore")) for answer in answers),
            num_truncated=len(with_bos) - num_kept,
        )

    def _split(self, text: str, answer_starts: list[int]) -> list[str]:
        """The text in pieces that begin where answers begin.

        A tokenizer may merge characters across that position, or look ahead past it: GPT-2 reads
        "\\n\\n" as one token at the end of a text and as two before a letter. Separate pieces give
        a prompt the same tokens with and without its answer.
        """
        edges = [0, *answer_starts, len(text)] if self.split_at_answers else [0, len(text)]
        return [text[start:end] for start, end in pairwise(edges) if start < end]

    def _can_split(self) -> bool:
        """Whether a row in pieces gives the tokens that the model saw in pretraining.

        False for tokenizers that put a space before every text they are given, and so before every
        piece. Their rows are tokenized whole; the prompt is a prefix of the row in that case too.
        """
        prompt = self.parts.assistant_open
        prompt_ids = self._ids(prompt)
        row_ids = self._ids(prompt + _SAMPLE_ANSWER)
        same_when_split = row_ids == prompt_ids + self._ids(_SAMPLE_ANSWER)
        prompt_is_prefix = row_ids[: len(prompt_ids)] == prompt_ids
        return same_when_split or not prompt_is_prefix

    def _with_bos(self, ids: list[int]) -> list[int]:
        """The ids, with the beginning-of-text token first where the tokenizer adds one."""
        bos = self.tokenizer.bos_token_id
        return [bos, *ids] if self.add_bos and ids[:1] != [bos] else ids

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids


def select_template(tokenizer: PreTrainedTokenizerFast, model_type: str | None = None) -> Template:
    """Choose the tokenizer's own chat template, else that of its family, else ChatML.

    Args:
        tokenizer: the model's tokenizer.
        model_type: `config.model_type` of the model ("gemma3_text", "llama", ...), if known.

    Returns:
        The template, with the reason for the choice.

    Raises:
        UserError: the tokenizer gives no character offsets, or no token can end an answer.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(
            "this tokenizer has no fast version, which gives the positions of tokens in a text",
            location=str(tokenizer.name_or_path),
            hint="use a model with a tokenizer.json",
        )
    reason = "the tokenizer has no chat template"
    if tokenizer.chat_template:
        try:
            parts = infer_parts(tokenizer)
            return _template(tokenizer, parts, "tokenizer", "the tokenizer's own chat template")
        except ValueError as error:
            reason = f"the tokenizer's own chat template cannot be used ({error})"
    for model_prefix, name, title, parts, required in _FAMILIES:
        if model_type and not model_type.startswith(model_prefix):
            continue
        if _has(tokenizer, *required):
            parts = replace(parts, start=tokenizer.bos_token or "")
            return _template(tokenizer, parts, name, f"{reason}; that of {title} is used")
    return _chatml(tokenizer, reason)


def _has(tokenizer: PreTrainedTokenizerFast, *tokens: str) -> bool:
    vocabulary = tokenizer.get_vocab()
    return all(token in vocabulary for token in tokens)


def _template(
    tokenizer: PreTrainedTokenizerFast, parts: TemplateParts, name: str, reason: str
) -> Template:
    bos = tokenizer.bos_token_id
    add_bos = bos is not None and tokenizer("a")["input_ids"][:1] == [bos]
    return Template(tokenizer, parts, name, reason, add_bos)


def _chatml(tokenizer: PreTrainedTokenizerFast, reason: str) -> Template:
    """ChatML, with the end-of-text token in place of <|im_end|> where the vocabulary lacks it."""
    end = "<|im_end|>" if _has(tokenizer, "<|im_end|>") else tokenizer.eos_token
    if not end:
        raise UserError(
            "the tokenizer has neither a chat template nor an end-of-text token",
            location=str(tokenizer.name_or_path),
            hint="use a tokenizer that names its eos_token",
        )
    parts = replace(CHATML, user_close=f"{end}\n", end_of_turn=end, system_close=f"{end}\n")
    reason += (
        f", and its vocabulary has no known family's marks; ChatML is used, ending turns with {end}"
    )
    return _template(tokenizer, parts, "chatml", reason)
