"""Talking to one or several tuned models in the terminal."""

from __future__ import annotations

import sys

from tarazu.chat.data.chat_template import Turn
from tarazu.chat.evaluation import generation
from tarazu.chat.inference.trained_model import load
from tarazu.errors import UserError

HELP = "Write a message and press Enter. /new starts again, /quit leaves."


def chat_loop(
    runs: list[str], compare: bool, prompt: str, system: str, temperature: float, most: int
) -> None:
    """A conversation on stdin and stdout, or one answer to `prompt`. Several runs only with `compare`."""
    if len(runs) > 1 and not compare:
        raise UserError("several models were given", location="tarazu chat", hint="add --compare")
    partners = [
        ChatSession(path, system, most, generation.Sampling(temperature, 0.95)) for path in runs
    ]
    if prompt:
        for partner in partners:
            partner.reply(prompt, named=len(partners) > 1)
        return
    print(HELP, file=sys.stderr)
    while (line := _read()) is not None:
        if line == "/new":
            for partner in partners:
                partner.forget()
        elif line == "/quit":
            return
        elif line:
            for partner in partners:
                partner.reply(line, named=len(partners) > 1)


class ChatSession:
    """One model and its side of the conversation."""

    def __init__(self, path: str, system: str, most: int, sampling: generation.Sampling):
        self.model, self.template, self.run, _ = load(path)
        self.system, self.most, self.sampling = system, most, sampling
        self.forget()

    def forget(self) -> None:
        self.turns = [Turn("system", self.system)] if self.system else []

    def reply(self, text: str, named: bool) -> None:
        """Prints the answer as it is written, and remembers both turns."""
        self.turns.append(Turn("user", text))
        if named:
            print(f"[{self.run.name}] ", end="")
        ids: list[int] = []
        shown = ""
        tokenizer = self.template.tokenizer
        for token in generation.stream(
            self.model,
            self.template.encode_prompt(self.turns),
            set(self.template.stop_ids),
            self.most,
            self.sampling,
        ):
            ids.append(token)
            text = tokenizer.decode(ids, skip_special_tokens=True)
            if not text.endswith("\ufffd"):  # half of a letter: wait for the rest
                print(text[len(shown) :], end="", flush=True)
                shown = text
        print()
        self.turns.append(Turn("assistant", shown.strip()))


def _read() -> str | None:
    """One line from stdin, or None at its end."""
    if sys.stdin.isatty():
        print("> ", end="", file=sys.stderr, flush=True)
    line = sys.stdin.readline()
    return line.strip() if line else None
