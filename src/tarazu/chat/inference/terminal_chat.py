"""Chat with one or several tuned models in the terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tarazu.chat.data.chat_template import Turn
from tarazu.chat.evaluation import generation
from tarazu.chat.inference.trained_model import load
from tarazu.errors import UserError

HELP = "Write a message and press Enter. /new starts again, /quit leaves."
TOP_P = 0.95


def chat_loop(
    runs: Sequence[str],
    compare: bool,
    prompt: str,
    system: str,
    temperature: float,
    max_new_tokens: int,
) -> None:
    """Hold a conversation on stdin and stdout, or answer one prompt.

    Args:
        runs: runs, DIR/METHOD; several only with `compare`.
        compare: several models answer every message.
        prompt: one message to answer; empty for a conversation.
        system: the system message, or empty.
        temperature: sampling temperature; 0 is greedy.
        max_new_tokens: length limit of an answer.

    Raises:
        UserError: several runs without `compare`, or a run that cannot be loaded.
    """
    if len(runs) > 1 and not compare:
        raise UserError("several models were given", location="tarazu chat", hint="add --compare")
    sampling = generation.Sampling(temperature, TOP_P)
    sessions = [ChatSession(path, system, max_new_tokens, sampling) for path in runs]
    if prompt:
        for session in sessions:
            session.reply(prompt, named=len(sessions) > 1)
        return
    print(HELP, file=sys.stderr)
    while (line := _read_line()) is not None:
        if line == "/new":
            for session in sessions:
                session.reset()
        elif line == "/quit":
            return
        elif line:
            for session in sessions:
                session.reply(line, named=len(sessions) > 1)


class ChatSession:
    """One model and its conversation."""

    def __init__(
        self, path: str, system: str, max_new_tokens: int, sampling: generation.Sampling
    ) -> None:
        self.model, self.template, self.run, _ = load(path)
        self.system, self.max_new_tokens, self.sampling = system, max_new_tokens, sampling
        self.reset()

    def reset(self) -> None:
        """Forget all turns but the system message."""
        self.turns = [Turn("system", self.system)] if self.system else []

    def reply(self, text: str, named: bool) -> None:
        """Print the answer while it is generated, and remember both turns.

        Args:
            text: the user's message.
            named: print the method's name before the answer.
        """
        self.turns.append(Turn("user", text))
        if named:
            print(f"[{self.run.name}] ", end="")
        ids: list[int] = []
        printed = ""
        tokens = generation.stream(
            self.model,
            self.template.encode_prompt(self.turns),
            set(self.template.stop_ids),
            self.max_new_tokens,
            self.sampling,
        )
        for token in tokens:
            ids.append(token)
            answer = self.template.tokenizer.decode(ids, skip_special_tokens=True)
            if not answer.endswith("\ufffd"):  # an incomplete character: wait for its other bytes
                print(answer[len(printed) :], end="", flush=True)
                printed = answer
        print()
        self.turns.append(Turn("assistant", printed.strip()))


def _read_line() -> str | None:
    """One line from stdin, or None at its end."""
    if sys.stdin.isatty():
        print("> ", end="", file=sys.stderr, flush=True)
    line = sys.stdin.readline()
    return line.strip() if line else None
