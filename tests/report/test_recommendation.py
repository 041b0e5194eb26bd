"""The recommendation: what each preference picks, and which methods tie with the best."""

from __future__ import annotations

import json
import shutil

from caption_folders import captions_folder
from folders import chat_folder, update, write

from tarazu.report.analysis.comparison import compare
from tarazu.report.analysis.recommendation import Candidate, choose, pareto, recommend
from tarazu.report.analysis.study_view import read_study
from tarazu.report.build import report_of
from tarazu.report.sections.captions.metrics import METRICS as CAPTION_METRICS
from tarazu.report.sections.chat.metrics import METRICS as CHAT_METRICS


def verdict_of(folder):
    study = read_study(folder)
    comparison = compare(study, report_of(study).metrics)
    return recommend(study, comparison), comparison


def candidate(name, seconds, size, seconds_range):
    """A method whose quality is that of all others."""
    return Candidate(
        name,
        "lora",
        2.6,
        0.7,
        {"train_seconds": seconds, "weights_bytes": size},
        {"train_seconds": seconds_range, "weights_bytes": (size, size)},
    )


def test_cost_decides_between_methods_that_tie(tmp_path):
    verdict, comparison = verdict_of(chat_folder(tmp_path))
    assert verdict.best.name in ("lora", "lora_high_rank")
    assert comparison.is_significant("loss", "lora", "lora_high_rank") is False
    assert comparison.is_significant("loss", "lora", "layers") is True
    choice = verdict.choices["quality"]
    assert choice.name == "lora" and choice.by == "train_seconds"  # 100 s against 130 s


def test_tie_that_does_not_beat_the_base_is_not_chosen(tmp_path):
    verdict, comparison = verdict_of(chat_folder(tmp_path))
    cheaper = verdict.choices["quality"].name
    best = next(c for c in verdict.candidates if c.name != cheaper)
    candidates = [best, *[c for c in verdict.candidates if c is not best]]

    def chosen(not_better):
        return choose("quality", None, candidates, comparison, not_better).name

    assert chosen([]) == cheaper
    assert chosen([cheaper]) == best.name
    assert chosen([cheaper, best.name]) == cheaper


def test_smaller_weights_decide_where_the_costs_of_the_seeds_overlap(tmp_path):
    _, comparison = verdict_of(chat_folder(tmp_path))
    large = candidate("large", 8.7, 60, (8.4, 9.2))
    small = candidate("small", 8.8, 15, (8.4, 9.3))
    slow = candidate("slow", 11, 5, (10.7, 11.2))  # in every seed
    choice = choose("speed", "train_seconds", [large, small, slow], comparison, [])
    assert (choice.name, choice.by, choice.runner_up) == ("small", "train_seconds", "large")
    slower = candidate("small", 9.4, 15, (9.3, 9.5))
    choice = choose("speed", "train_seconds", [large, slower, slow], comparison, [])
    assert (choice.name, choice.runner_up) == ("large", None)
    assert choose("size", "weights_bytes", [large, small, slow], comparison, []).name == "slow"


def test_each_preference_picks_the_cheapest_of_the_good_methods(tmp_path):
    verdict, _ = verdict_of(chat_folder(tmp_path))
    # `layers` keeps 81% of the best gain only.
    assert set(verdict.choices["memory"].allowed) == {"lora", "lora_high_rank"}
    assert verdict.choices["memory"].name == "lora"
    assert all(choice.name != "prompt_tuning" for choice in verdict.choices.values())


def test_method_that_learnt_nothing_is_not_better_than_the_base(tmp_path):
    folder = chat_folder(tmp_path)
    shutil.copy(folder / "base/seed-0/metrics.json", folder / "layers/seed-0/metrics.json")
    verdict, _ = verdict_of(folder)
    assert verdict.not_better == ["layers"]


def test_methods_with_other_test_rows_are_not_compared(tmp_path):
    folder = chat_folder(tmp_path)
    path = folder / "layers/seed-0/metrics.json"
    update(path, row_losses=json.loads(path.read_text())["row_losses"][:-1])
    _, comparison = verdict_of(folder)
    assert comparison.rows_differ == ["layers"]
    assert comparison.is_significant("loss", "lora", "layers") is None


def test_pareto_front_has_the_methods_that_no_other_beats():
    points = {"a": (2.5, 10), "b": (2.4, 20), "c": (2.6, 15), "d": (2.4, 30), "e": (2.3, 40)}
    candidates = [
        Candidate(name, "lora", loss, None, {"train_seconds": seconds})
        for name, (loss, seconds) in points.items()
    ]
    front = pareto(candidates, CHAT_METRICS.primary, "train_seconds")
    assert front == ["a", "b", "e"]
    for name, (loss, seconds) in points.items():
        beaten = any(
            other <= loss and other_seconds <= seconds and (other, other_seconds) != (loss, seconds)
            for other, other_seconds in points.values()
        )
        assert (name in front) is not beaten


def test_captions_are_compared_by_cider_where_higher_is_better():
    candidates = [
        Candidate("a", "x", 50.0, None, {"train_seconds": 10}),
        Candidate("b", "x", 60.0, None, {"train_seconds": 5}),
    ]
    assert pareto(candidates, CAPTION_METRICS.primary, "train_seconds") == ["b"]


def test_ensemble_can_win_on_quality_but_not_on_costs(tmp_path):
    folder = captions_folder(tmp_path)
    shutil.copytree(folder / "show_attend_tell", folder / "both")
    update(folder / "both/seed-0/run.json", kind="ensemble", trained_parameters=0)
    path = folder / "both/seed-0/metrics.json"
    metrics = json.loads(path.read_text())
    metrics["decoding"]["beam3"]["cider"] += 10
    write(path, metrics)
    verdict, _ = verdict_of(folder)
    assert verdict.best.name == "both"
    assert "both" not in {verdict.choices[name].name for name in ("memory", "speed", "size")}
