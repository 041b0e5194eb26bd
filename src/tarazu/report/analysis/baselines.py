"""The three baselines of captioning: what a person, one fixed sentence and another image's caption score."""

from __future__ import annotations

from tarazu.report.analysis.study_view import StudyView, as_number, get_path

NAMES = ("human", "constant", "shuffled")
_PATHS = {
    "cider": ("cider",),
    "rouge_l": ("rouge_l",),
    "meteor": ("meteor",),
    **{f"bleu{n}": ("bleu", n - 1) for n in (1, 2, 3, 4)},
}


def baselines(study: StudyView) -> tuple[dict[str, dict], str]:
    """The baselines and the file that they stand in: the first run that has them (they are the same for all)."""
    for method in study.methods:
        for run in method.measured:
            found = get_path(run.metrics, "baselines", default={})
            if isinstance(found, dict) and found:
                return {
                    name: found[name] for name in NAMES if isinstance(found.get(name), dict)
                }, run.file("metrics.json")
    return {}, ""


def constant_score(study: StudyView, key: str) -> float | None:
    """What one fixed caption for every image scores; None for a figure that baselines do not have."""
    if key not in _PATHS:
        return None
    return as_number(get_path(baselines(study)[0].get("constant"), *_PATHS[key]))
