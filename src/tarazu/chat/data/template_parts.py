"""A chat template as plain pieces of text: the known families', and a tokenizer's own, measured.

A tokenizer's template is a foreign program. It is brought into the same form by rendering marked turns, and taken only
if the pieces then give back exactly what the program itself writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tarazu.chat.data.conversation import Turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Llama 3.1 and later write today's date into the prompt; a row must give the same tokens tomorrow (theirs as default)
_FIXED_DATE = {"date_string": "26 Jul 2024"}


@dataclass(frozen=True)
class TemplateParts:
    """A template: `start [system_open S system_close] (user_open U user_close assistant_open A end_of_turn after_turn)...`.

    `start` holds the beginning-of-text token. A family without system turns has `system_open` None: the system text
    then goes before the first question, joined by `system_separator`. `start_system` replaces `start` where a system turn follows.
    """

    start: str
    user_open: str
    user_close: str
    assistant_open: str
    end_of_turn: str
    after_turn: str
    system_open: str | None = None
    system_close: str = ""
    start_system: str | None = None
    system_separator: str = "\n\n"

    def render(self, turns: Sequence[Turn]) -> tuple[str, list[tuple[int, int, int]]]:
        """The text of the turns, and (start, end of the answer, end of its end-of-turn token) of every answer."""
        turns, out, spans = list(turns), "", []
        if turns and turns[0].role == "system":
            system = turns.pop(0)
            if self.system_open is not None:
                opening = self.start if self.start_system is None else self.start_system
                out = opening + self.system_open + system.text + self.system_close
            elif turns:
                turns[0] = replace(turns[0], text=system.text + self.system_separator + turns[0].text)
        out = out or self.start
        for turn in turns:
            if turn.role == "user":
                out += self.user_open + turn.text + self.user_close
                continue
            out += self.assistant_open
            start, end = len(out), len(out) + len(turn.text)
            out += turn.text + self.end_of_turn
            spans.append((start, end, len(out)))
            out += self.after_turn
        return out, spans

    def render_prompt(self, turns: Sequence[Turn]) -> str:
        """The text that an answer follows: a prefix of `render` of the same turns with that answer."""
        return self.render(turns)[0] + self.assistant_open


GEMMA = TemplateParts(
    "<bos>",
    "<start_of_turn>user\n",
    "<end_of_turn>\n",
    "<start_of_turn>model\n",
    "<end_of_turn>",
    "\n",
)
_HEAD = "<|start_header_id|>{}<|end_header_id|>\n\n".format
LLAMA3 = TemplateParts("<|begin_of_text|>", _HEAD("user"), "<|eot_id|>", _HEAD("assistant"), "<|eot_id|>", "",
                _HEAD("system"), "<|eot_id|>")  # fmt: skip
CHATML = TemplateParts("", "<|im_start|>user\n", "<|im_end|>\n", "<|im_start|>assistant\n", "<|im_end|>", "\n",
                "<|im_start|>system\n", "<|im_end|>\n")  # fmt: skip


def infer_parts(tokenizer: PreTrainedTokenizerFast) -> TemplateParts:
    """The tokenizer's own template as `Pieces`. Raises `ValueError` with the reason where it does not come apart."""
    q1, a1, q2, a2, s = (
        Turn(r, t) for r, t in zip(("user", "assistant", "user", "assistant", "system"), _MARKED, strict=True)
    )
    render = _renderer(tokenizer)
    asked, bare, full = render([q1], True), render([q1]), render([q1, a1, q2, a2])
    if not asked.startswith(bare):
        raise ValueError("its generation prompt changes what stands before it")
    head, user_close = _around(bare, q1.text)
    assistant_open = asked[len(bare) :]
    between = _between(full, a1.text, q2.text)
    tail = full[full.rindex(a2.text) + len(a2.text) :]
    if not assistant_open or not between.startswith(tail) or not head.endswith(between[len(tail) :]):
        raise ValueError("its turns do not come apart")
    user_open = between[len(tail) :]
    end = _leading_token(tokenizer, tail)
    pieces = TemplateParts(
        head[: len(head) - len(user_open)],
        user_open,
        user_close,
        assistant_open,
        end,
        tail[len(end) :],
    )
    pieces = _with_system(pieces, render, s, q1)
    for turns in ([q1, a1], [q1, a1, q2, a2]):
        for case in (turns, [s, *turns]) if pieces.system_open is not None else (turns,):
            if pieces.render(case)[0] != render(case) or pieces.render_prompt(case[:-1]) != render(
                case[:-1], True
            ):
                raise ValueError("it writes a turn differently by where it stands")
    return pieces


_MARKED = ("QQ1QQ", "AA1AA", "QQ2QQ", "AA2AA", "SS1SS")


def _with_system(pieces: TemplateParts, render, system: Turn, question: Turn) -> TemplateParts:
    """Adds how the template writes a system turn; one that refuses or folds it leaves `system_open` None."""
    try:
        text = render([system, question])
    except ValueError:  # Gemma 2 raises "System role not supported"
        return pieces
    if text.count(system.text) != 1 or text.index(system.text) > text.index(question.text):
        return pieces
    opening, between = text[: text.index(system.text)], _between(text, system.text, question.text)
    if not between.endswith(
        pieces.user_open
    ):  # Gemma 3 folds it into the question itself, after a blank line
        folds = opening == pieces.start + pieces.user_open
        return replace(pieces, system_separator=between) if folds else pieces
    close = between[: len(between) - len(pieces.user_open)]
    return replace(pieces, start_system="", system_open=opening, system_close=close)


def _renderer(tokenizer: PreTrainedTokenizerFast):
    def render(turns: Sequence[Turn], prompt: bool = False) -> str:
        messages = [{"role": t.role, "content": t.text} for t in turns]
        try:
            return tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=prompt, **_FIXED_DATE
            )
        except Exception as error:  # a template is a foreign program: whatever it raises means that it cannot be used
            raise ValueError(
                f"it fails: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
            ) from None

    return render


def _around(text: str, inner: str) -> tuple[str, str]:
    if text.count(inner) != 1:
        raise ValueError("it does not write a turn exactly once")
    return text[: text.index(inner)], text[text.index(inner) + len(inner) :]


def _between(text: str, first: str, second: str) -> str:
    if text.count(first) != 1 or text.count(second) != 1 or text.index(first) > text.index(second):
        raise ValueError("it does not write every turn exactly once, in order")
    return text[text.index(first) + len(first) : text.index(second)]


def _leading_token(tokenizer: PreTrainedTokenizerFast, text: str) -> str:
    """The single token of the vocabulary, not plain text, that `text` begins with."""
    added = sorted(
        (token.content for token in tokenizer.added_tokens_decoder.values()), key=len, reverse=True
    )
    token = next((token for token in added if token and text.startswith(token)), None)
    if token is None:
        raise ValueError("its answers do not end in a token of their own")
    return token
