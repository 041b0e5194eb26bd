"""METEOR 1.5 (Denkowski and Lavie 2014), by the Java program that pycocoevalcap carries; optional.

It aligns words by form, stem, synonym and paraphrase, so it needs tables that only come with the jar. The jar is spoken
to over its `-stdio` protocol: a SCORE line per caption gives statistics, one EVAL line gives the scores of them all.
"""

from __future__ import annotations

import atexit
import importlib.util
import shutil
import subprocess
import threading
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from tarazu.errors import TarazuError

Tokens = Sequence[str]
LOCK = threading.Lock()  # one question at a time
TODO = "leave METEOR out, or repair Java"


def jar() -> Path | None:
    """Where METEOR's jar is; None without Java or without the package pycocoevalcap."""
    package = importlib.util.find_spec("pycocoevalcap")
    if package is None or shutil.which("java") is None:
        return None
    found = [
        Path(root) / "meteor" / "meteor-1.5.jar"
        for root in package.submodule_search_locations or ()
    ]
    return next((path for path in found if path.exists()), None)


def meteor(
    candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]
) -> tuple[float, list[float]]:
    """Corpus score and the score of each tokenised candidate, 0..1. Raises `TarazuError` when the program fails."""
    with LOCK:
        try:
            java = program()
            statistics = [
                ask(java, score_line(c, r)) for c, r in zip(candidates, references, strict=True)
            ]
            first = ask(java, " ||| ".join(["EVAL", *statistics]))
            scores = [float(line) for line in (first, *(read(java) for _ in candidates))]
        except (OSError, ValueError) as error:
            program.cache_clear()  # the next call starts afresh
            raise TarazuError(
                f"METEOR's Java program failed: {error}", location=str(jar()), hint=TODO
            ) from None
    return scores[-1], scores[:-1]


@cache
def program() -> subprocess.Popen:
    """The Java program, started once: loading its tables takes far longer than scoring. It ends with this process."""
    path = jar()
    if path is None:
        raise TarazuError(
            "METEOR needs Java and the package pycocoevalcap",
            hint="install both, or leave METEOR out",
        )
    command = ["java", "-Xmx2G", "-jar", path.name, "-", "-", "-stdio", "-l", "en", "-norm"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    own = {"start_new_session": True}  # Ctrl-C is for the study to answer, not for its helper
    java = subprocess.Popen(command, cwd=path.parent, text=True, encoding="utf-8", **pipes, **own)
    atexit.register(end, java)
    return java


def end(java: subprocess.Popen) -> None:
    """Ends the program and waits for it."""
    java.kill()
    java.wait()


def score_line(candidate: Tokens, references: Sequence[Tokens]) -> str:
    """The SCORE request of one caption. `|||` cannot be part of a token of ours: a `|` is a token of its own."""
    return " ||| ".join(
        ["SCORE", *(" ".join(reference) for reference in references), " ".join(candidate)]
    )


def ask(java: subprocess.Popen, line: str) -> str:
    """Sends one line, returns the answer."""
    java.stdin.write(line + "\n")
    java.stdin.flush()
    return read(java)


def read(java: subprocess.Popen) -> str:
    """One line of the program's answer; a closed pipe is an error, not an empty answer."""
    line = java.stdout.readline()
    if not line:
        raise ValueError("it ended before it answered")
    return line.strip()
