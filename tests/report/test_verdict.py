"""The recommendation: what each preference picks, and that ties are called ties."""

from __future__ import annotations

import json
import shutil

from caption_folders import captions_folder
from folders import chat_folder

from tarazu.report.analysis.comparison import compare
from tarazu.report.analysis.recommendation import Candidate, choose, pareto, recommend
from tarazu.report.analysis.study_view import read_study
from tarazu.report.build import report_of
from tarazu.report.sections.captions.metrics import METRICS as caption_metrics
from tarazu.report.sections.chat.metrics import METRICS as chat_metrics


def verdict_of(folder):
    study = read_study(folder)
    comparison = compare(study, report_of(study).metrics)
    return recommend(study, comparison), comparison


def test_the_best_is_tied_with_its_twin_and_cost_decides(tmp_path):
    verdict, comparison = verdict_of(chat_folder(tmp_path))
    assert verdict.best.name in ("lora", "lora_high_rank")
    assert comparison.is_significant("loss", "lora", "lora_high_rank") is False
    assert comparison.is_significant("loss", "lora", "layers") is True
    choice = verdict.choices["quality"]
    assert choice.name == "lora" and choice.by == "train_seconds"  # 100 s beside 130 s


def test_a_cheaper_twin_whose_own_gain_is_not_sure_is_not_chosen(tmp_path):
    study = read_study(chat_folder(tmp_path))
    comparison = compare(study, report_of(study).metrics)
    verdict = recommend(study, comparison)
    twin = verdict.choices["quality"].name
    best, *_ = (c for c in verdict.candidates if c.name != twin)
    candidates = [best, *[c for c in verdict.candidates if c.name != best.name]]
    assert choose("quality", None, candidates, comparison, []).name == twin
    assert choose("quality", None, candidates, comparison, [twin]).name == best.name
    assert choose("quality", None, candidates, comparison, [twin, best.name]).name == twin


def test_a_cost_that_the_seeds_leave_open_decides_nothing(tmp_path):
    """Training of 8.7 s and 8.8 s, whose seeds lie 8.4 to 9.2 s: the smaller weights decide; a third method is slower in every seed."""
    verdict, comparison = verdict_of(chat_folder(tmp_path))

    def candidate(name, seconds, size, span):
        return Candidate(
            name,
            "lora",
            2.6,
            0.7,
            {"train_seconds": seconds, "weights_bytes": size},
            {"train_seconds": span, "weights_bytes": (size, size)},
        )

    large, small, slow = (
        candidate("large", 8.7, 60, (8.4, 9.2)),
        candidate("small", 8.8, 15, (8.4, 9.3)),
        candidate("slow", 11, 5, (10.7, 11.2)),
    )
    choice = choose("speed", "train_seconds", [large, small, slow], comparison, [])
    assert (choice.name, choice.by, choice.runner_up) == ("small", "train_seconds", "large")
    apart = candidate("small", 9.4, 15, (9.3, 9.5))
    choice = choose("speed", "train_seconds", [large, apart, slow], comparison, [])
    assert (choice.name, choice.runner_up) == ("large", None)
    assert choose("size", "weights_bytes", [large, small, slow], comparison, []).name == "slow"


def test_each_preference_picks_the_cheapest_of_the_good_ones(tmp_path):
    verdict, _ = verdict_of(chat_folder(tmp_path))
    assert set(verdict.choices["memory"].allowed) == {
        "lora",
        "lora_high_rank",
    }  # layers keeps 81% of the gain only
    assert verdict.choices["memory"].name == "lora"
    assert all(choice.name != "prompt_tuning" for choice in verdict.choices.values())


def test_a_method_that_learnt_nothing_is_not_better_than_the_base(tmp_path):
    folder = chat_folder(tmp_path)
    base = json.loads((folder / "base/seed-0/metrics.json").read_text())
    (folder / "layers/seed-0/metrics.json").write_text(json.dumps(base))
    verdict, _ = verdict_of(folder)
    assert verdict.not_better == ["layers"]


def test_other_test_rows_are_not_compared(tmp_path):
    folder = chat_folder(tmp_path)
    path = folder / "layers/seed-0/metrics.json"
    metrics = json.loads(path.read_text())
    metrics["row_losses"] = metrics["row_losses"][:-1]
    path.write_text(json.dumps(metrics))
    _, comparison = verdict_of(folder)
    assert (
        comparison.rows_differ == ["layers"]
        and comparison.is_significant("loss", "lora", "layers") is None
    )


def test_pareto_front_is_what_nobody_beats():
    metric = chat_metrics.primary
    points = {"a": (2.5, 10), "b": (2.4, 20), "c": (2.6, 15), "d": (2.4, 30), "e": (2.3, 40)}
    candidates = [
        Candidate(n, "lora", q, None, {"train_seconds": s}) for n, (q, s) in points.items()
    ]
    front = pareto(candidates, metric, "train_seconds")
    assert front == ["a", "b", "e"]
    for one in points:
        beaten = any(
            q <= points[one][0] and s <= points[one][1] and (q, s) != points[one]
            for q, s in points.values()
        )
        assert (one in front) is not beaten


def test_captions_are_judged_by_cider_upwards():
    candidates = [
        Candidate("a", "x", 50.0, None, {"train_seconds": 10}),
        Candidate("b", "x", 60.0, None, {"train_seconds": 5}),
    ]
    assert pareto(candidates, caption_metrics.primary, "train_seconds") == ["b"]


def test_an_ensemble_may_win_on_quality_but_has_no_costs_to_win_with(tmp_path):
    folder = captions_folder(tmp_path)
    shutil.copytree(folder / "show_attend_tell", folder / "together")
    run, metrics = folder / "together/seed-0/run.json", folder / "together/seed-0/metrics.json"
    run.write_text(
        json.dumps(json.loads(run.read_text()) | {"kind": "ensemble", "trained_parameters": 0})
    )
    found = json.loads(metrics.read_text())
    found["decoding"]["beam3"]["cider"] += 10
    metrics.write_text(json.dumps(found))
    verdict, _ = verdict_of(folder)
    assert verdict.best.name == "together"
    assert "together" not in {verdict.choices[wish].name for wish in ("memory", "speed", "size")}
