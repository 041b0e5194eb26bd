"""Metrics of the captions task: corpus scores of beam search (else greedy decoding), and loss."""

from __future__ import annotations

from tarazu.report.analysis.baselines import constant_score
from tarazu.report.analysis.metrics import LOSS, PERPLEXITY, Metric, TaskMetrics, sample_scores
from tarazu.report.analysis.study_view import as_number, get_path


def _decoded(key: str, *path: str | int) -> Metric:
    """A score of the captions of the test images, from 0 to 100."""
    paths = (("decoding", "beam3", *path), ("decoding", "greedy", *path))
    rows = sample_scores(lambda sample: as_number(get_path(sample, "scores", key)))
    return Metric(key, "high", "points", "metrics.json", paths, rows=rows)


CIDER = _decoded("cider", "cider")
METRICS = TaskMetrics(
    quality=(
        CIDER,
        *[_decoded(f"bleu{n}", "bleu", n - 1) for n in (1, 2, 3, 4)],
        _decoded("rouge_l", "rouge_l"),
        _decoded("meteor", "meteor"),
        LOSS,
        PERPLEXITY,
    ),
    tested=("cider", "bleu4"),
    tested_as={"perplexity": "loss"},
    baseline=lambda study: constant_score(study, "cider"),
)
