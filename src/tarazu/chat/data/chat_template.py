"""Conversations as tokens: choose the model's chat template and encode rows with it.

A row is rendered as one text and tokenized. The tokens of each answer and of its end of turn are
supervised: the loss covers them. For one exchange in Gemma's template (⏎ is a line break):

    <bos><start_of_turn>user⏎Hi<end_of_turn>⏎<start_of_turn>model⏎Hello there<end_of_turn>⏎
                                                                  ^          ^            ^
                                                              start        end  end_of_turn

    token       <bos> <start_of_turn> user ⏎ Hi <end_of_turn> ⏎ <start_of_turn> model ⏎
    supervised    0          0         0   0  0       0       0        0          0   0
    token       Hello  there <end_of_turn> ⏎
    supervised    1      1         1       0

1. `TemplateParts.render` gives the text and the span of every answer: its first character (start),
   one past the last of its text (end), and one past the last of its end of turn (end_of_turn).
2. `_split` divides the text where answers begin (unless `_can_split` says no), and the pieces are
   tokenized one by one. Then no token crosses the beginning of an answer. In both cases the tokens
   of a prompt are the first tokens of its row.
3. `_finish_row` marks a token as supervised if its characters overlap an answer or its end of turn,
   and cuts the row at `max_length` tokens.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

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


class _Family(NamedTuple):
    """A family of models with a chat template."""

    model_prefix: str  # how `config.model_type` starts
    name: str  # name of the template
    title: str  # name of the family in messages
    parts: TemplateParts
    required: tuple[str, ...]  # tokens that the vocabulary must have


_FAMILIES = (
    _Family("gemma", "gemma", "Gemma", GEMMA, ("<start_of_turn>", "<end_of_turn>")),
    _Family(
        "llama",
        "llama3",
        "Llama 3",
        LLAMA3,
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    ),
)
_SAMPLE_ANSWER = "سلام."  # for `_can_split`; Persian, as are most rows of the chat task

Offsets = list[tuple[int, int]]  # for each token, its first character and one past its last


@dataclass(frozen=True)
class Encoded:
    """One tokenized row.

    Args:
        ids: token ids (T,), int32.
        supervised: True for tokens that the loss covers (T,), bool.
        answer_bytes: UTF-8 bytes of the supervised answers' texts that the kept tokens cover.
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
        name: "gemma", "llama3" or "chatml" for a template of this project, "tokenizer" for the
            tokenizer's own.
        reason: why this template was chosen, for the report.
        add_bos: the tokenizer itself starts texts with its BOS token. `_with_bos` adds that token
            where the template has not written it.

    Attributes:
        markers: matches special tokens of this template and of known families, and BOS, EOS and
            padding. They are removed from the rows' texts, where they could forge a turn.
        split_at_answers: whether a row is tokenized in pieces; see `_can_split`.
    """

    tokenizer: PreTrainedTokenizerFast
    parts: TemplateParts
    name: str
    reason: str
    add_bos: bool = False
    markers: re.Pattern[str] = field(init=False)
    split_at_answers: bool = field(init=False)

    def __post_init__(self) -> None:
        # Special tokens that the template does not write, such as <mask>, are no markers: they are
        # harmless, and some data sets use them on purpose.
        empty = (Turn("system", ""), Turn("user", ""), Turn("assistant", ""))
        written = self.parts.render(empty)[0]
        tokenizer = self.tokenizer
        special = [token.content for token in tokenizer.added_tokens_decoder.values()]
        markers = [token for token in special if token in written]
        markers += [tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token]
        self.markers = marker_pattern(token for token in markers if token and token.strip())
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
        # Generation compares single tokens. If the end of turn has several, the first one counts.
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
            conversations: conversations with cleaned texts: those that `parse_row` returns when it
                gets this template's `markers`.
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
            supervised_spans = [
                span for span, turn in zip(spans, answers, strict=True) if turn.train_on
            ]
            rows.append(self._finish_row(text, ids, offsets, supervised_spans, max_length))
        return rows

    def encode_prompt(self, turns: Sequence[Turn]) -> list[int]:
        """Tokenize the turns before an answer. Their texts are cleaned first.

        Returns:
            Token ids: exactly the first ones of the row that consists of these turns and an answer.
        """
        cleaned = self._cleaned(turns)
        starts = [span.start for span in self.parts.render(cleaned)[1]]
        pieces = self._split(self.parts.render_prompt(cleaned), starts)
        return self._with_bos([i for piece in pieces for i in self._ids(piece)])

    def _cleaned(self, turns: Sequence[Turn]) -> tuple[Turn, ...]:
        return tuple(replace(turn, text=clean(turn.text, self.markers)[0]) for turn in turns)

    def _finish_row(
        self,
        text: str,
        ids: list[int],
        offsets: Offsets,
        spans: list[AnswerSpan],
        max_length: int | None,
    ) -> Encoded:
        """Mark the tokens of `spans` as supervised, add a missing BOS, and cut at `max_length`."""
        starts = np.array([start for start, _ in offsets], dtype=np.int64)
        ends = np.array([end for _, end in offsets], dtype=np.int64)

        # A token is supervised if its characters overlap an answer or its end of turn.
        supervised = np.zeros(len(ids), dtype=bool)
        for span in spans:
            supervised |= (starts < span.end_of_turn) & (ends > span.start)

        # A BOS token that the tokenizer adds covers no characters and is not supervised.
        with_bos = self._with_bos(ids)
        if len(with_bos) > len(ids):
            supervised = np.concatenate(([False], supervised))
            ends = np.concatenate(([0], ends))

        # In a cut row, answers count up to the end of the last kept token.
        num_kept = len(with_bos) if max_length is None else min(len(with_bos), max_length)
        text_end = int(ends[num_kept - 1]) if num_kept else 0
        answers = [text[span.start : min(span.end, text_end)] for span in spans]
        return Encoded(
            ids=np.array(with_bos[:num_kept], dtype=np.int32),
            supervised=supervised[:num_kept],
            # "ignore" leaves out lone surrogates, which have no UTF-8 bytes.
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
        """Whether rows are to be tokenized in pieces; tried on one prompt with an answer.

        Three cases:

        * The pieces have the tokens of the undivided text. Splitting does no harm: True.
        * They differ, and the prompt's are not the first tokens of the undivided text. A token
          crosses the beginning of the answer, which splitting prevents: True.
        * They differ although the prompt's are the first ones. The tokenizer changes the beginning
          of every text, for example by a space, so splitting would change the answer: False.
        """
        prompt = self.parts.assistant_open
        prompt_ids = self._ids(prompt)
        row_ids = self._ids(prompt + _SAMPLE_ANSWER)
        same_when_split = row_ids == prompt_ids + self._ids(_SAMPLE_ANSWER)
        prompt_is_prefix = row_ids[: len(prompt_ids)] == prompt_ids
        return same_when_split or not prompt_is_prefix

    def _with_bos(self, ids: list[int]) -> list[int]:
        """The ids with BOS in front, if the tokenizer adds one and the template has not."""
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
            "this tokenizer has no fast version, which alone tells the characters of each token",
            location=str(tokenizer.name_or_path),
            hint="use a model with a tokenizer.json",
        )
    # 1. The tokenizer's own template, if it can be divided into parts.
    reason = "the tokenizer has no chat template"
    if tokenizer.chat_template:
        try:
            parts = infer_parts(tokenizer)
            return _template(tokenizer, parts, "tokenizer", "the tokenizer's own chat template")
        except ValueError as error:
            reason = f"the tokenizer's own chat template cannot be used ({error})"
    # 2. The template of the model's family, or without a model type the first one whose tokens the
    #    vocabulary has.
    for family in _FAMILIES:
        is_possible = not model_type or model_type.startswith(family.model_prefix)
        if is_possible and _has(tokenizer, *family.required):
            parts = replace(family.parts, start=tokenizer.bos_token or "")
            reason += f"; that of {family.title} is used"
            return _template(tokenizer, parts, family.name, reason)
    # 3. ChatML.
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
        f", and none of a known model family fits; ChatML is used, with {end} as the end of turn"
    )
    return _template(tokenizer, parts, "chatml", reason)
