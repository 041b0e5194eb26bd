"""An LLM as a judge: which of two methods answers better, over all questions of a study.

`tarazu judge` needs an OpenAI-compatible endpoint; no other command needs this module. Every prompt
and raw reply is kept in the run folder, so that no question is asked twice.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tarazu.chat.evaluation.openai_client import Endpoint
from tarazu.chat.evaluation.pairwise_prompt import PROMPT_HASH, Sample, judge_pair, write_prompt
from tarazu.engine.progress import log
from tarazu.errors import TarazuError, UserError
from tarazu.storage.atomic_io import corrupt_file_error, read_jsonl, write_json, write_jsonl
from tarazu.storage.run_folder import RunDir, StudyDir, find_study

JUDGED = ("questions", "test")  # reading comprehension has right answers and needs no judge
Z_95 = 1.959963984540054  # the 97.5% quantile of the normal distribution


def judge(
    path: str,
    endpoint: Endpoint,
    against: str = "base",
    methods: Sequence[str] = (),
    limit: int | None = None,
) -> dict[str, Any]:
    """Compare every method's answers with those of one method.

    Pairs judged before are not asked again.

    Args:
        path: the run folder.
        endpoint: the judge.
        against: the method that the others are compared with.
        methods: the methods to compare; empty: all that are finished.
        limit: compare only so many questions of each method.

    Returns:
        The content of DIR/judge.json.

    Raises:
        UserError: a named method has no finished run, or nothing is left to compare.
        TarazuError: the endpoint fails; the verdicts so far are kept.
    """
    study = find_study(path)
    runs = _finished_runs(study)
    candidates = _candidates(study, list(runs), against, methods)
    results: dict[str, Any] = {}
    with study.lock():
        for name in candidates:
            verdicts_path = study.path / "judge" / f"{name}.jsonl"
            verdicts = compare(runs[name], runs[against], endpoint, verdicts_path, limit)
            results[name] = {"seed": runs[name].seed, **aggregate(verdicts)}
            _write_results(study, endpoint, against, results)
    written: dict[str, Any] = study.read_json("judge.json")
    return written


def compare(
    candidate: RunDir, baseline: RunDir, endpoint: Endpoint, path: Path, limit: int | None
) -> list[dict[str, Any]]:
    """Judge the candidate's answers against the baseline's, question by question.

    Args:
        candidate, baseline: two runs of one study.
        endpoint: the judge.
        path: JSON lines of verdicts. Those already there are used; new ones are appended at once.
        limit: only so many questions.

    Returns:
        A verdict for each question, see `judge_pair`.
    """
    pairs = _pairs(candidate, baseline)[:limit]
    known = {line["key"]: line for line in read_jsonl(path) if "key" in line}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_jsonl(path, list(known.values()))  # drops a last line that a crash cut off
    verdicts = []
    with open(path, "a", encoding="utf-8") as file:
        for number, (ours, theirs) in enumerate(pairs, 1):
            key = _key(endpoint, candidate.name, baseline.name, ours, theirs)
            if key not in known:
                log(f"judge: {candidate.name} against {baseline.name}, {number} of {len(pairs)}")
                verdict = judge_pair(candidate.name, baseline.name, ours, theirs, endpoint.ask)
                known[key] = {"id": ours["id"], "seed": candidate.seed, "key": key, **verdict}
                file.write(json.dumps(known[key], ensure_ascii=False) + "\n")
                file.flush()
            verdicts.append(known[key])
    num_unreadable = sum(line["verdict"] is None for line in verdicts)
    if num_unreadable:
        log(
            f"judge: {num_unreadable} of {len(verdicts)} replies about {candidate.name} hold no "
            f"verdict and are not counted; they are in {path}"
        )
    return verdicts


def aggregate(verdicts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Count verdicts: wins, ties, losses, the win rate with its interval, and position bias.

    A tie is half a win. `first_position_rate` is how often the answer that was read first won.
    """
    counts = Counter(verdict["verdict"] for verdict in verdicts)
    num_decided = counts["win"] + counts["tie"] + counts["loss"]
    win_rate = (counts["win"] + counts["tie"] / 2) / num_decided if num_decided else None
    choices = Counter(order["choice"] for verdict in verdicts for order in verdict["orders"])
    num_choices = choices["first"] + choices["second"]
    return {
        "questions": len(verdicts),
        "win": counts["win"],
        "tie": counts["tie"],
        "loss": counts["loss"],
        "no_verdict": counts[None],
        "inconsistent": sum(verdict["consistent"] is False for verdict in verdicts),
        "identical": sum(not verdict["orders"] for verdict in verdicts),
        "win_rate": win_rate,
        "interval": None if win_rate is None else wilson(win_rate, num_decided),
        "first_position_rate": choices["first"] / num_choices if num_choices else None,
    }


def wilson(rate: float, n: int, z: float = Z_95) -> list[float]:
    """The score interval of a proportion (Wilson 1927, doi:10.1080/01621459.1927.10502953).

    scipy has it for whole numbers of wins only. Here a tie is half a win, which makes the interval
    slightly too wide, because a half varies less than a win or a loss.

    Args:
        rate: the observed proportion, 0..1.
        n: the number of observations.
        z: the normal quantile of the confidence level; default: 95%.
    """
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half_width = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return [max(0.0, centre - half_width), min(1.0, centre + half_width)]


def key_from(variable: str) -> str | None:
    """The API key in an environment variable; None if no variable is named.

    Raises:
        UserError: the variable is empty, or holds characters that an HTTP header cannot carry.
    """
    if not variable:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise UserError(
            f"the variable {variable} is not set",
            location="--api-key-env",
            hint=f"export {variable}=...",
        )
    if not (key.isascii() and key.isprintable()):
        raise UserError(
            f"{variable} holds no API key: it has characters that a header cannot carry",
            location="--api-key-env",
        )
    return key


def table(results: dict[str, Any]) -> str:
    """The win rates of `judge`, for the terminal."""
    lines = [
        f"judged by {results['model']}, against {results['against']}",
        f"{'method':<20} {'win':>4} {'tie':>4} {'loss':>4} {'none':>4}  win rate (95%)",
    ]
    for name, row in results["methods"].items():
        rate = "-"
        if row["win_rate"] is not None:
            low, high = row["interval"]
            rate = f"{row['win_rate']:.0%} ({low:.0%} to {high:.0%})"
        counts = (row[key] for key in ("win", "tie", "loss", "no_verdict"))
        lines.append(f"{name:<20} " + " ".join(f"{count:>4}" for count in counts) + f"  {rate}")
    return "\n".join(lines)


def _candidates(
    study: StudyDir, finished: list[str], against: str, methods: Sequence[str]
) -> list[str]:
    """The methods to compare, checked."""
    unknown = [name for name in (against, *methods) if name not in finished]
    if unknown:
        raise UserError(
            f"no finished run of {unknown[0]!r}",
            location=str(study.path),
            hint=f"one of: {', '.join(finished) or 'none is finished'}",
        )
    candidates = [name for name in finished if name != against and (not methods or name in methods)]
    if not candidates:
        raise UserError(
            "there is nothing to compare",
            location=str(study.path),
            hint=f"train a method besides {against}",
        )
    return candidates


def _write_results(
    study: StudyDir, endpoint: Endpoint, against: str, results: dict[str, Any]
) -> None:
    """Write judge.json; results of other methods by the same judge stay."""
    previous = study.read_json("judge.json") or {}
    if not isinstance(previous.get("methods", {}), dict):
        raise corrupt_file_error(study.path / "judge.json", "`methods` is not an object")
    settings = {
        "model": endpoint.model,
        "endpoint": endpoint.address,
        "against": against,
        "prompt": PROMPT_HASH,
    }
    same_judge = all(previous.get(key) == value for key, value in settings.items())
    kept = previous.get("methods", {}) if same_judge else {}
    write_json(study.path / "judge.json", {**settings, "methods": {**kept, **results}})


def _finished_runs(study: StudyDir) -> dict[str, RunDir]:
    """The first finished seed of each method."""
    runs: dict[str, RunDir] = {}
    for run in study.runs():
        if run.done() and (run.path / "samples.jsonl").exists():
            runs.setdefault(run.name, run)
    return runs


def _pairs(candidate: RunDir, baseline: RunDir) -> list[tuple[Sample, Sample]]:
    """The answers of both runs to the same questions, in the candidate's order."""
    theirs = {sample["id"]: sample for sample in baseline.read_jsonl("samples.jsonl")}
    pairs = [
        (sample, theirs[sample["id"]])
        for sample in candidate.read_jsonl("samples.jsonl")
        if sample.get("from") in JUDGED and sample["id"] in theirs
    ]
    if not pairs:
        raise TarazuError(
            "no question that both answered",
            location=str(candidate.path),
            hint="give the recipe questions or generation.num_test_answers",
        )
    return pairs


def _key(
    endpoint: Endpoint, candidate_name: str, baseline_name: str, ours: Sample, theirs: Sample
) -> str:
    """A hash of everything that decides a verdict: a change of any part is asked again."""
    parts = [
        endpoint.model,
        endpoint.address,
        candidate_name,
        baseline_name,
        write_prompt(ours, ours["output"], theirs["output"]),
        PROMPT_HASH,
    ]
    text = json.dumps(parts, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()
