"""A chat template as ten plain strings, for known model families or inferred from a tokenizer.

A tokenizer's own template is a Jinja program. Only its output is known, not where an answer begins
in it. `infer_parts` therefore renders a few conversations with it and reads the strings between
the turns off the output. The parts are used only if they reproduce the program's output exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from tarazu.chat.data.conversation import Turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Llama 3.1 and later write today's date into the prompt. A row must give the same tokens every
# day, so the date is fixed to the default of Llama's own template.
_FIXED_DATE: dict[str, Any] = {"date_string": "26 Jul 2024"}

# Turns that no template contains, to find again in its output.
_SYSTEM, _USER_1, _USER_2 = Turn("system", "SS1SS"), Turn("user", "QQ1QQ"), Turn("user", "QQ2QQ")
_ASSISTANT_1, _ASSISTANT_2 = Turn("assistant", "AA1AA"), Turn("assistant", "AA2AA")

_Render = Callable[..., str]  # (turns, add_generation_prompt=False) -> text


class AnswerSpan(NamedTuple):
    """Character positions of one answer in a rendered conversation."""

    start: int  # first character of the answer
    end: int  # one past its last character, where the end-of-turn token begins
    end_of_turn: int  # one past the end-of-turn token


@dataclass(frozen=True)
class TemplateParts:
    """The strings between the turns. In Gemma's template (⏎ is a line break):

        part            value                     followed by
        start           <bos>
        user_open       <start_of_turn>user⏎      the user's text
        user_close      <end_of_turn>⏎
        assistant_open  <start_of_turn>model⏎     the answer
        end_of_turn     <end_of_turn>
        after_turn      ⏎                         user_open of the next exchange

    Args:
        start: text before the first turn, with the beginning-of-text token.
        user_open, user_close: text around a question.
        assistant_open: text before an answer; the generation prompt ends with it.
        end_of_turn: the token that ends an answer. The loss covers it; generation stops there.
        after_turn: text between an answer and the next question.
        system_open, system_close: text around a system turn. `system_open` is None for families
            without system turns: the system text then begins the first question.
        start_system: replaces `start` if there is a system turn; None: the same as `start`.
        system_separator: text between the system text and the first question, if joined.
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

    def render(self, turns: Sequence[Turn]) -> tuple[str, list[AnswerSpan]]:
        """The conversation as one text, and where each answer is in it."""
        turns = list(turns)
        text = self.start
        if turns and turns[0].role == "system":
            system = turns.pop(0)
            if self.system_open is not None:
                opening = self.start if self.start_system is None else self.start_system
                text = opening + self.system_open + system.text + self.system_close
            elif turns:
                first = system.text + self.system_separator + turns[0].text
                turns[0] = replace(turns[0], text=first)

        spans = []
        for turn in turns:
            if turn.role == "user":
                text += self.user_open + turn.text + self.user_close
            else:
                text += self.assistant_open
                start, end = len(text), len(text) + len(turn.text)
                text += turn.text + self.end_of_turn
                spans.append(AnswerSpan(start, end, len(text)))
                text += self.after_turn
        return text, spans

    def render_prompt(self, turns: Sequence[Turn]) -> str:
        """The text before an answer: a prefix of `render` of these turns with the answer."""
        return self.render(turns)[0] + self.assistant_open


GEMMA = TemplateParts(
    start="<bos>",
    user_open="<start_of_turn>user\n",
    user_close="<end_of_turn>\n",
    assistant_open="<start_of_turn>model\n",
    end_of_turn="<end_of_turn>",
    after_turn="\n",
)
LLAMA3 = TemplateParts(
    start="<|begin_of_text|>",
    user_open="<|start_header_id|>user<|end_header_id|>\n\n",
    user_close="<|eot_id|>",
    assistant_open="<|start_header_id|>assistant<|end_header_id|>\n\n",
    end_of_turn="<|eot_id|>",
    after_turn="",
    system_open="<|start_header_id|>system<|end_header_id|>\n\n",
    system_close="<|eot_id|>",
)
CHATML = TemplateParts(
    start="",
    user_open="<|im_start|>user\n",
    user_close="<|im_end|>\n",
    assistant_open="<|im_start|>assistant\n",
    end_of_turn="<|im_end|>",
    after_turn="\n",
    system_open="<|im_start|>system\n",
    system_close="<|im_end|>\n",
)


def infer_parts(tokenizer: PreTrainedTokenizerFast) -> TemplateParts:
    """Read the parts of the tokenizer's own template off its output.

    Args:
        tokenizer: a tokenizer with a `chat_template`.

    Returns:
        Parts that render one and two exchanges, with and without a system turn, as the template
            does.

    Raises:
        ValueError: the template cannot be expressed in parts; the message is the reason.
    """
    render = _renderer(tokenizer)

    # 1. What the generation prompt adds to a question is what opens an answer.
    question = render([_USER_1])
    prompt = render([_USER_1], True)
    if not prompt.startswith(question):
        raise ValueError("its generation prompt changes the text before it")
    before_question, user_close = _around(question, _USER_1.text)
    assistant_open = prompt[len(question) :]

    # 2. The text after the last answer closes an answer. The text between the first answer and the
    #    second question is the same, followed by what opens a question.
    two_exchanges = render([_USER_1, _ASSISTANT_1, _USER_2, _ASSISTANT_2])
    after_answer = two_exchanges[two_exchanges.rindex(_ASSISTANT_2.text) + len(_ASSISTANT_2.text) :]
    between = _between(two_exchanges, _ASSISTANT_1.text, _USER_2.text)
    user_open = between[len(after_answer) :]
    if (
        not assistant_open
        or not between.startswith(after_answer)
        or not before_question.endswith(user_open)
    ):
        raise ValueError("its turns cannot be told apart")

    # 3. The answer's end must be one token, because the loss includes it and generation stops at
    # it.
    end_of_turn = _leading_token(tokenizer, after_answer)
    parts = TemplateParts(
        start=before_question[: len(before_question) - len(user_open)],
        user_open=user_open,
        user_close=user_close,
        assistant_open=assistant_open,
        end_of_turn=end_of_turn,
        after_turn=after_answer[len(end_of_turn) :],
    )
    parts = _with_system(parts, render)
    _check(parts, render)
    return parts


def _with_system(parts: TemplateParts, render: _Render) -> TemplateParts:
    """Add how the template writes a system turn. If it refuses one, `system_open` stays None."""
    try:
        text = render([_SYSTEM, _USER_1])
    except ValueError:  # Gemma 2 raises "System role not supported"
        return parts
    system, question = _SYSTEM.text, _USER_1.text
    if text.count(system) != 1 or text.index(system) > text.index(question):
        return parts
    opening, between = text[: text.index(system)], _between(text, system, question)
    if between.endswith(parts.user_open):
        close = between[: len(between) - len(parts.user_open)]
        return replace(parts, start_system="", system_open=opening, system_close=close)
    # Gemma 3 puts the system text into the first question, before a blank line.
    if opening == parts.start + parts.user_open:
        return replace(parts, system_separator=between)
    return parts


def _check(parts: TemplateParts, render: _Render) -> None:
    """Raise `ValueError` if the parts and the template render a conversation differently."""
    one_exchange = [_USER_1, _ASSISTANT_1]
    for turns in (one_exchange, [*one_exchange, _USER_2, _ASSISTANT_2]):
        cases = [turns] if parts.system_open is None else [turns, [_SYSTEM, *turns]]
        for case in cases:
            same_row = parts.render(case)[0] == render(case)
            if not same_row or parts.render_prompt(case[:-1]) != render(case[:-1], True):
                raise ValueError("it writes a turn differently by its position")


def _renderer(tokenizer: PreTrainedTokenizerFast) -> _Render:
    """The tokenizer's template as a function.

    Whatever the Jinja program raises becomes `ValueError`.
    """

    def render(turns: Sequence[Turn], add_generation_prompt: bool = False) -> str:
        messages = [{"role": turn.role, "content": turn.text} for turn in turns]
        try:
            text = tokenizer.apply_chat_template(
                messages,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                **_FIXED_DATE,
            )
        except Exception as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(f"it fails: {reason}") from None
        return str(text)

    return render


def _around(text: str, inner: str) -> tuple[str, str]:
    """What is before and after `inner` in `text`."""
    if text.count(inner) != 1:
        raise ValueError("it does not write a turn exactly once")
    before, _, after = text.partition(inner)
    return before, after


def _between(text: str, first: str, second: str) -> str:
    """What is between `first` and `second` in `text`."""
    if text.count(first) != 1 or text.count(second) != 1 or text.index(first) > text.index(second):
        raise ValueError("it does not write every turn exactly once, in order")
    return text[text.index(first) + len(first) : text.index(second)]


def _leading_token(tokenizer: PreTrainedTokenizerFast, text: str) -> str:
    """The longest special token that `text` begins with."""
    special = [token.content for token in tokenizer.added_tokens_decoder.values()]
    for token in sorted(special, key=len, reverse=True):
        if token and text.startswith(token):
            return token
    raise ValueError("its answers do not end in a token of their own")
