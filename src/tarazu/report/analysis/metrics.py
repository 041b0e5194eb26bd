"""What is compared: each figure's name, which way is better, and the file and keys that it comes from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tarazu.report.analysis.study_view import MethodView, RunView, as_number, dicts_in, get_path


@dataclass(frozen=True)
class Metric:
    """One figure of a run. `paths` are tried in turn: the first that holds a number counts."""

    key: str
    better: str  # "low" or "high"
    format: str
    file: str
    paths: tuple[tuple, ...]
    cost: bool = False

    def of(self, run: RunView) -> float | None:
        tree = {"metrics.json": run.metrics, "ledger.json": run.ledger, "run.json": run.run_info}[
            self.file
        ]
        return next(
            (
                value
                for path in self.paths
                if (value := as_number(get_path(tree, *path))) is not None
            ),
            None,
        )

    def gain(self, value: float, beside: float) -> float:
        """How much better `value` is than `beside`: positive is better whichever way the metric runs."""
        return beside - value if self.better == "low" else value - beside


def _generated(key: str, better: str, format: str, part: str = "test") -> Metric:
    other = "questions" if part == "test" else "test"
    paths = (
        (("generation", part, key),)
        if key == "checks_passed"
        else (("generation", part, key), ("generation", other, key))
    )
    return Metric(key, better, format, "metrics.json", paths)


def _decoded(key: str, *path) -> Metric:
    return Metric(
        key,
        "high",
        "points",
        "metrics.json",
        (("decoding", "beam3", *path), ("decoding", "greedy", *path)),
    )


def _cost(key: str, format: str, *paths: tuple) -> Metric:
    return Metric(key, "low", format, "ledger.json", paths, cost=True)


COSTS = [
    _cost("train_seconds", "seconds", ("seconds", "train")),
    _cost(
        "train_memory",
        "bytes",
        ("train_memory", "allocated"),
        ("train_memory", "reserved"),
        ("train_memory", "resident"),
    ),
    _cost("trained_parameters", "count", ("trained_parameters",)),
    _cost("weights_bytes", "bytes", ("weights_bytes",)),
]
FORGETTING_METRIC = Metric(
    "english_bits_per_byte",
    "low",
    "loss",
    "metrics.json",
    (("forgetting", "english", "bits_per_byte"),),
)
PARETO_COSTS = [*COSTS, FORGETTING_METRIC]  # what quality is weighed against
SPEED = Metric("tokens_per_second", "high", "count", "ledger.json", (("tokens_per_second",),))
ENERGY = Metric("energy_joules", "low", "count", "ledger.json", (("energy_joules",),))
QUALITY = {
    "chat": [
        Metric("loss", "low", "loss", "metrics.json", (("loss",),)),
        Metric("perplexity", "low", "two", "metrics.json", (("perplexity",),)),
        Metric("bits_per_byte", "low", "loss", "metrics.json", (("bits_per_byte",),)),
        _generated("chrf", "high", "points"),
        _generated("rouge_l", "high", "points"),
        _generated("checks_passed", "high", "percent", "questions"),
        _generated("repetition", "low", "percent"),
        _generated("wrong_script", "low", "percent"),
        _generated("unfinished", "low", "percent"),
        _generated("prompt_copy", "low", "percent"),
        Metric(
            "reading_exact_match", "high", "percent", "metrics.json", (("reading", "exact_match"),)
        ),
        Metric("reading_f1", "high", "percent", "metrics.json", (("reading", "f1"),)),
        Metric(
            "persian_bits_per_byte",
            "low",
            "loss",
            "metrics.json",
            (("forgetting", "persian", "bits_per_byte"),),
        ),
        FORGETTING_METRIC,
    ],
    "captions": [
        _decoded("cider", "cider"),
        *[_decoded(f"bleu{n}", "bleu", n - 1) for n in (1, 2, 3, 4)],
        _decoded("rouge_l", "rouge_l"),
        _decoded("meteor", "meteor"),
        Metric("loss", "low", "loss", "metrics.json", (("loss",),)),
        Metric("perplexity", "low", "two", "metrics.json", (("perplexity",),)),
    ],
}
FLOPS = Metric("flops_per_token", "low", "flops", "ledger.json", (("flops_per_token",),))
UTILISATION = Metric("utilisation", "high", "percent", "ledger.json", (("utilisation",),))
FORGETTING = ("english_bits_per_byte", "persian_bits_per_byte")
TESTED = {
    "chat": ["loss", "chrf", "checks_passed", "reading_f1", *FORGETTING],
    "captions": ["cider", "bleu4"],
}
SECONDARY_TESTS = {
    "chat": ["rouge_l", "repetition", "wrong_script", "unfinished", "prompt_copy", "reading_exact_match"]
}  # tested too, told in a sentence each
SAME_ROWS = {
    "perplexity": "loss",
    "bits_per_byte": "loss",
}  # the same rows' loss in another unit: its test speaks for them
RATE_THRESHOLDS = {
    "repetition": 0.2,
    "wrong_script": 0.5,
    "prompt_copy": 0.5,
}  # an answer counts from here on, as in the rates of metrics.json


def all_metrics(task: str) -> dict[str, Metric]:
    return {
        m.key: m
        for m in [*QUALITY.get(task, QUALITY["chat"]), *COSTS, SPEED, ENERGY, FLOPS, UTILISATION]
    }


def primary(task: str) -> Metric:
    """The figure that "quality" means: loss on unseen answers for chat, CIDEr for captions."""
    return QUALITY.get(task, QUALITY["chat"])[0]


def mean_over_seeds(method: MethodView, metric: Metric) -> float | None:
    """The mean over the seeds that have the figure; a method that trains nothing has no costs of its own."""
    if metric.cost and method.untrained:
        return None
    values = seed_values(method, metric)
    return float(np.mean(values)) if values else None


def seed_values(method: MethodView, metric: Metric) -> list[float]:
    """The figure of each seed that has it; of the ledger's, only of those on the device that most of the method's seeds ran on."""
    return [
        value
        for run in method.runs
        if not (metric.file == "ledger.json" and run.on_other_device)
        and (value := metric.of(run)) is not None
    ]


@dataclass(frozen=True)
class Rows:
    """One figure row by row: values (seeds, rows), weights (rows,) or None, and the rows' ids."""

    values: np.ndarray
    weights: np.ndarray | None
    ids: tuple


def row_values(method: MethodView, key: str) -> Rows | None:
    """The figure `key` of each test row (or question, or image), for the seeds that answered the same rows."""
    found = [rows for run in method.measured if (rows := _of_run(run, key)) is not None]
    if not found:
        return None
    same = [rows for rows in found if rows[0] == found[0][0]]
    return Rows(np.array([values for _, values, _ in same]), found[0][2], found[0][0])


def _of_run(run: RunView, key: str) -> tuple[tuple, list[float], np.ndarray | None] | None:
    if key == "loss":
        return _summed(run.metrics.get("row_losses"), 1)
    if key in FORGETTING:
        return _summed(get_path(run.metrics, "forgetting", key.partition("_")[0], "row_losses"), 2)
    scored = [
        (s.get("id"), value) for s in run.samples if (value := sample_score(s, key)) is not None
    ]
    if len(scored) < 2:
        return None
    scored.sort(key=lambda pair: str(pair[0]))
    ids, values = zip(*scored, strict=True)
    return ids, list(values), None


def _summed(rows, by: int) -> tuple[tuple, list[float], np.ndarray] | None:
    """Nats of each row over its tokens (`by` 1), or its bits over its bytes (`by` 2)."""
    good = (
        isinstance(rows, list)
        and rows
        and all(
            isinstance(r, list) and len(r) > by and as_number(r[0]) is not None and as_number(r[by])
            for r in rows
        )
    )
    if not good:
        return None
    unit = 1.0 if by == 1 else float(np.log(2))
    return (
        tuple(range(len(rows))),
        [r[0] / unit for r in rows],
        np.array([r[by] for r in rows], dtype=float),
    )


def sample_score(sample: dict, key: str) -> float | None:
    """One answer's score, 0 to 100: the share of its checks passed, of reading the named score, of a test row that or whether it counts in a rate."""
    if key == "checks_passed":
        checks = sample.get("checks")
        return (
            100 * float(np.mean([bool(v) for v in checks.values()]))
            if isinstance(checks, dict) and checks
            else None
        )
    if key == "reading_f1":
        value = (
            as_number(get_path(sample, "scores", "f1")) if sample.get("from") == "reading" else None
        )
        return None if value is None else 100 * value
    if key == "reading_exact_match":
        value = (
            as_number(get_path(sample, "scores", "exact_match"))
            if sample.get("from") == "reading"
            else None
        )
        return None if value is None else 100 * value
    if sample.get("from") not in (None, "test"):
        return None
    if key == "unfinished":
        return (
            100.0 * (not sample["finished"]) if isinstance(sample.get("finished"), bool) else None
        )
    value = as_number(get_path(sample, "scores", key))
    return (
        100.0 * (value > RATE_THRESHOLDS[key])
        if value is not None and key in RATE_THRESHOLDS
        else value
    )


def by_id(run: RunView) -> dict[str, dict]:
    return {str(sample.get("id")): sample for sample in dicts_in(run.samples)}


def signed_format(metric: Metric) -> str:
    """How a difference in the figure is written: row scores run from 0 to 100, losses do not."""
    return "signed" if metric.format in ("loss", "two") else "signed_points"


def unsigned(format: str) -> str:
    return "loss" if format == "signed" else "points"
