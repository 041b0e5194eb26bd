"""estimate.json: written before the runs, only for the same recipe, and no obstacle to a run."""

from __future__ import annotations

import json
import shutil

import pytest
from chat import small

from tarazu import cli
from tarazu.chat.task import Chat
from tarazu.commands import run as study_commands
from tarazu.errors import UserError
from tarazu.estimate import estimator
from tarazu.report.analysis.study_view import read_study
from tarazu.report.build import build
from tarazu.report.sections.common.estimates import estimates_view
from tarazu.storage.atomic_io import read_json, write_json

METHODS = {"base": {}, "lora": {"rank": 2}}
BUDGET = {
    "tokens": 3_000,
    "batch_rows": 8,
    "micro_batch_tokens": 1500,
    "evaluate_every": 1_500,
    "validation_rows": 4,
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A recipe, a measured estimate, and a study with it and one with a prediction."""
    home = tmp_path_factory.mktemp("estimates")
    recipe = small.recipe(
        home / "recipe.yaml", small.save_model(home / "model"), methods=METHODS, budget=BUDGET
    )
    arguments = ["check", str(recipe), "--rows", "0", "--out", str(home / "estimate.json")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["tarazu", *arguments])
        cli.main()
    study_commands.run(str(recipe), str(home / "measured"), estimate=str(home / "estimate.json"))
    study_commands.run(str(recipe), str(home / "predicted"))
    return home


def test_a_study_that_is_stopped_while_it_prepares_keeps_the_measured_estimate(
    home, tmp_path, monkeypatch
):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Chat, "prepare", interrupted)
    recipe, out = home / "recipe.yaml", tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        study_commands.run(str(recipe), str(out), estimate=str(home / "estimate.json"))
    kept = read_json(out / "estimate.json")
    assert [method["how"] for method in kept["methods"]] == ["measured", "measured"]


def test_a_study_records_a_prediction(home):
    kept = read_json(home / "predicted" / "estimate.json")
    assert [m["method"] for m in kept["methods"]] == ["base", "lora"] and kept["total"][
        "methods"
    ] == 2
    assert all(
        m["how"] == "predicted" and m["range"]["seconds"][1] > 0 and m["created"]
        for m in kept["methods"]
    )
    ledger = read_json(home / "predicted" / "lora" / "seed-0" / "ledger.json")
    weights = (home / "predicted" / "lora" / "seed-0" / "weights.safetensors").stat().st_size
    assert (
        ledger["disk_bytes"] > 3 * weights
    )  # the weights, and two checkpoints with optimizer state


def test_a_measured_estimate_is_copied_unchanged(home):
    kept, given = (
        read_json(home / "measured" / "estimate.json"),
        read_json(home / "estimate.json")["estimate"],
    )
    assert [{k: v for k, v in m.items() if k != "created"} for m in kept["methods"]] == given[
        "methods"
    ]
    assert kept["methods"][1]["how"] == "measured" and kept["methods"][1]["seconds"]["train"] > 0


def test_the_report_compares_the_estimate_with_the_run(home, undrawn):
    (measured, predicted) = (
        estimates_view(read_study(home / name)) for name in ("measured", "predicted")
    )
    for view, how in ((measured, "measured steps"), (predicted, "a table of devices")):
        rows = {row[0].html.plain("en"): row for row in view["table"].rows}
        assert how in rows["lora"][1].html.plain("en")
    ledger, guess = (
        read_json(home / "measured/lora/seed-0/ledger.json"),
        read_json(home / "measured/estimate.json")["methods"][1],
    )
    columns = [column.plain("en") for column in measured["table"].columns]
    lora = dict(zip(columns, measured["table"].rows[1], strict=True))
    assert lora["training time"].sort == pytest.approx(
        ledger["seconds"]["train"] / guess["seconds"]["train"]
    )
    assert lora["tokens per second"].sort == pytest.approx(
        ledger["tokens_per_second"] / guess["tokens_per_second"]
    )
    assert lora["disk space while training"].sort == pytest.approx(
        ledger["disk_bytes"] / guess["disk"]
    )
    page = build(home / "measured").read_text(encoding="utf-8")
    assert "Estimated and actual costs" in page and "within 20% of the actual value" in page


def test_an_estimate_of_another_recipe_is_refused(home, tmp_path):
    for overrides, what in (
        (["budget.tokens=4000"], "budget"),
        (["methods.lora.rank=4"], "methods.lora"),
    ):
        with pytest.raises(UserError, match=what):
            study_commands.run(
                str(home / "recipe.yaml"),
                str(tmp_path / "out"),
                overrides=overrides,
                estimate=str(home / "estimate.json"),
            )
    for content in ("{", "[]", '{"recipe": {}}', '{"recipe": {}, "estimate": {"methods": 3}}'):
        (tmp_path / "bad.json").write_text(content)
        with pytest.raises(UserError, match="bad.json"):
            study_commands.run(
                str(home / "recipe.yaml"),
                str(tmp_path / "out"),
                estimate=str(tmp_path / "bad.json"),
            )
    with pytest.raises(UserError, match="no such file"):
        study_commands.run(
            str(home / "recipe.yaml"), str(tmp_path / "out"), estimate=str(tmp_path / "none.json")
        )
    assert not (tmp_path / "out").exists()


def test_only_methods_that_have_not_run_are_estimated(home, tmp_path):
    folder = shutil.copytree(home / "predicted", tmp_path / "study")
    (folder / "estimate.json").unlink()
    study_commands.resume(str(folder))
    assert not (folder / "estimate.json").exists()
    study_commands.extend(
        str(home / "recipe.yaml"),
        str(folder),
        overrides=["methods.layers={num_first: 1, num_last: 1}"],
    )
    assert [m["method"] for m in read_json(folder / "estimate.json")["methods"]] == ["layers"]


def test_a_failed_prediction_stops_nothing(home, tmp_path, monkeypatch):
    monkeypatch.setattr(estimator, "estimate_study", lambda *_, **__: 1 / 0)
    folder = study_commands.run(str(home / "recipe.yaml"), str(tmp_path / "out"), ["base"]).path
    assert (
        not (folder / "estimate.json").exists()
        and read_json(folder / "base/seed-0/run.json")["status"] == "done"
    )


@pytest.mark.parametrize("content", ["{", "[]", '{"methods": 3}', '{"methods": [{}]}'])
def test_a_damaged_estimate_is_named(home, tmp_path, content, undrawn):
    folder = shutil.copytree(home / "predicted", tmp_path / "study")
    (folder / "estimate.json").write_text(content)
    with pytest.raises(UserError, match="estimate.json"):
        study_commands.resume(str(folder))
    build(folder)


def test_the_ratio_is_taken_to_the_nearer_end_of_the_range(home, tmp_path):
    folder = shutil.copytree(home / "predicted", tmp_path / "study")
    content = read_json(folder / "estimate.json")
    ledger = read_json(folder / "lora/seed-0/ledger.json")
    spent = sum(ledger["seconds"].values())
    for low, high, ratio in (
        (spent / 2, spent * 2, 1.0),
        (spent * 2, spent * 4, 0.5),
        (spent / 4, spent / 2, 2.0),
    ):
        content["methods"][1]["range"]["seconds"] = [low, high]
        write_json(folder / "estimate.json", content)
        table = estimates_view(read_study(folder))["table"]
        assert table.rows[1][2].sort == pytest.approx(ratio), json.dumps([low, high])
