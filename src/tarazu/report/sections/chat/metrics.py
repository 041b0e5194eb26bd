"""Metrics of the chat task: loss, text overlap, rule checks, rates, reading, forgetting."""

from __future__ import annotations

from functools import partial

import numpy as np

from tarazu.report.analysis.metrics import (
    LOSS,
    NATS_PER_BIT,
    PERPLEXITY,
    Metric,
    TaskMetrics,
    row_losses,
    sample_scores,
)
from tarazu.report.analysis.study_view import as_number, get_path

# A score above its threshold makes an answer count in the rate, as in the rates of metrics.json.
RATE_THRESHOLDS = {"repetition": 0.2, "wrong_script": 0.5, "prompt_copy": 0.5}
RATES = ("repetition", "wrong_script", "unfinished", "prompt_copy")


def sample_score(sample: dict, key: str) -> float | None:
    """One answer's score from 0 to 100, or None where the metric does not apply to it.

    Rule checks: the percentage passed. Reading comprehension: the score that the key names. Test
    rows: the score, or for a rate 100 where the answer counts in it and 0 where not.
    """
    if key == "checks_passed":
        checks = sample.get("checks")
        passed = [bool(value) for value in checks.values()] if isinstance(checks, dict) else []
        return 100 * float(np.mean(passed)) if passed else None
    if key in ("reading_f1", "reading_exact_match"):
        if sample.get("from") != "reading":
            return None
        value = as_number(get_path(sample, "scores", key.removeprefix("reading_")))
        return None if value is None else 100 * value
    if sample.get("from") not in (None, "test"):
        return None
    if key == "unfinished":
        finished = sample.get("finished")
        return 100.0 * (not finished) if isinstance(finished, bool) else None
    value = as_number(get_path(sample, "scores", key))
    if value is not None and key in RATE_THRESHOLDS:
        return 100.0 * (value > RATE_THRESHOLDS[key])
    return value


def _generated(key: str, better: str, format: str) -> Metric:
    """A metric of the generated answers to test rows; to the questions where test has none."""
    paths = (("generation", "test", key), ("generation", "questions", key))
    rows = sample_scores(partial(sample_score, key=key))
    return Metric(key, better, format, "metrics.json", paths, rows=rows)


def _reading(name: str) -> Metric:
    """A metric of reading comprehension."""
    key = f"reading_{name}"
    rows = sample_scores(partial(sample_score, key=key))
    return Metric(key, "high", "percent", "metrics.json", (("reading", name),), rows=rows)


def _forgetting(language: str) -> Metric:
    """Bits per byte of plain text in one language."""
    path = ("forgetting", language, "bits_per_byte")
    rows = row_losses("forgetting", language, "row_losses", weight_column=2, unit=NATS_PER_BIT)
    return Metric(f"{language}_bits_per_byte", "low", "loss", "metrics.json", (path,), rows=rows)


CHECKS_PASSED = Metric(
    "checks_passed",
    "high",
    "percent",
    "metrics.json",
    (("generation", "questions", "checks_passed"),),
    rows=sample_scores(partial(sample_score, key="checks_passed")),
)
ENGLISH, PERSIAN = _forgetting("english"), _forgetting("persian")
FORGETTING = (ENGLISH.key, PERSIAN.key)
METRICS = TaskMetrics(
    quality=(
        LOSS,
        PERPLEXITY,
        Metric("bits_per_byte", "low", "loss", "metrics.json", (("bits_per_byte",),)),
        _generated("chrf", "high", "points"),
        _generated("rouge_l", "high", "points"),
        CHECKS_PASSED,
        *[_generated(key, "low", "percent") for key in RATES],
        _reading("exact_match"),
        _reading("f1"),
        PERSIAN,
        ENGLISH,
    ),
    tested=("loss", "chrf", "checks_passed", "reading_f1", *FORGETTING),
    secondary=("rouge_l", *RATES, "reading_exact_match"),
    side_costs=(ENGLISH,),
    tested_as={"perplexity": "loss", "bits_per_byte": "loss"},
)
