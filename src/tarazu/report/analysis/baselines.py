"""Scores of captions of no model: a human's, one constant caption, another image's caption."""

from __future__ import annotations

from tarazu.report.analysis.study_view import StudyView, as_number, get_path

NAMES = ("human", "constant", "shuffled")
_PATHS: dict[str, tuple[str | int, ...]] = {
    "cider": ("cider",),
    "rouge_l": ("rouge_l",),
    "meteor": ("meteor",),
    **{f"bleu{n}": ("bleu", n - 1) for n in (1, 2, 3, 4)},
}


def baselines(study: StudyView) -> tuple[dict[str, dict], str]:
    """The baselines' scores by name, and the file that holds them.

    Every run of a study has the same baselines, so the first run that has them is read.
    """
    for method in study.methods:
        for run in method.measured:
            scores = get_path(run.metrics, "baselines", default={})
            if scores:
                by_name = {n: scores[n] for n in NAMES if isinstance(scores.get(n), dict)}
                return by_name, run.file("metrics.json")
    return {}, ""


def constant_score(study: StudyView, key: str) -> float | None:
    """The score of one constant caption for every image; None for metrics that baselines lack."""
    if key not in _PATHS:
        return None
    return as_number(get_path(baselines(study)[0].get("constant"), *_PATHS[key]))
