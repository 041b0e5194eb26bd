"""METEOR 1.5 (Denkowski and Lavie 2014), by the Java program of pycocoevalcap; optional.

METEOR aligns words by form, stem, synonym and paraphrase. The tables for this come with the
program's jar only.
"""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import signal
from collections.abc import Sequence
from functools import cache
from typing import Any

from tarazu.errors import TarazuError

Tokens = Sequence[str]


def is_available() -> bool:
    """Return whether Java and the package pycocoevalcap are installed."""
    return bool(importlib.util.find_spec("pycocoevalcap") and shutil.which("java"))


def meteor(
    candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]
) -> tuple[float, list[float]]:
    """Score tokenised candidates. Must be called from the main thread.

    Args:
        candidates: (images,) token lists.
        references: the references of each candidate.

    Returns:
        The corpus score and the score of each candidate, 0..1.

    Raises:
        TarazuError: the Java program is missing or fails.
    """
    if not is_available():
        raise TarazuError(
            "METEOR needs Java and the package pycocoevalcap",
            hint="install both, or leave METEOR out",
        )
    program = _program()
    try:
        return program.compute_score(
            {i: [" ".join(line) for line in lines] for i, lines in enumerate(references)},
            {i: [" ".join(line)] for i, line in enumerate(candidates)},
        )
    except (OSError, ValueError) as error:
        # Release what `compute_score` and `Meteor.__del__` would otherwise wait for or fail at.
        program.lock.release()
        with contextlib.suppress(OSError):
            program.meteor_p.stdin.close()
        _program.cache_clear()  # the next call starts a new program
        raise TarazuError(
            f"METEOR's Java program failed: {error}", hint="leave METEOR out, or repair Java"
        ) from None


@cache
def _program() -> Any:
    """The Java program, started once: loading its tables takes much longer than scoring."""
    from pycocoevalcap.meteor.meteor import Meteor

    # The program inherits the ignored signal: Ctrl-C stops the study at a checkpoint, and the
    # program must still answer until then.
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        return Meteor()
    finally:
        signal.signal(signal.SIGINT, previous)
