"""Merged parts of a study equal a study on one device; incompatible parts are refused."""

from __future__ import annotations

import html
import shlex
import shutil

import pytest
from chat import small

from tarazu import cli
from tarazu.commands import run as study_commands
from tarazu.errors import UserError
from tarazu.report.analysis.metrics import seed_values
from tarazu.report.analysis.study_view import read_study
from tarazu.report.build import build
from tarazu.report.sections.chat.metrics import METRICS
from tarazu.storage.atomic_io import read_json, write_json
from tarazu.study import merge, runner

METHODS = {name: small.METHODS[name] for name in ("base", "lora", "layers")}
BUDGET = {
    "tokens": 3_000,
    "batch_rows": 8,
    "micro_batch_tokens": 1500,
    "evaluate_every": 1_500,
    "validation_rows": 2,
}
TIMES = {"train_seconds", "train_memory", "tokens_per_second"}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A complete study, and the same study in two parts with different methods."""
    home = tmp_path_factory.mktemp("merge")
    search = {"tokens": 1200, "learning_rate": [1e-3, 1e-2], "extend_range": False}
    recipe = str(
        small.recipe(
            home / "recipe.yaml",
            small.save_model(home / "model"),
            methods=METHODS,
            budget=BUDGET,
            search=search,
            forgetting=None,
        )
    )
    study_commands.run(recipe, str(home / "whole"), overrides=["seeds=[0, 1]"])
    study_commands.run(recipe, str(home / "a"), ["layers"], ["seeds=[0, 1]"])
    study_commands.run(recipe, str(home / "b"), ["lora", "base"])
    study_commands.extend(recipe, str(home / "b"), ["seeds=[0, 1]"], ["lora"])
    return home


def test_environment_and_report_have_the_commands_that_extended_a_study(
    home, parts, tmp_path, monkeypatch, undrawn
):
    folder, recipe, commands = (
        shutil.copytree(home / "a", tmp_path / "study"),
        str(home / "recipe.yaml"),
        [],
    )
    began = read_json(folder / "environment.json")
    for methods, seeds in ((["layers"], "[0, 1, 2]"), (["layers", "base"], "[0, 1, 2]")):
        words = [
            "run",
            recipe,
            *(word for name in methods for word in ("--method", name)),
            "--set",
            f"seeds={seeds}",
            "--extend",
            "--out",
            str(folder),
        ]
        monkeypatch.setattr("sys.argv", ["tarazu", *words])
        commands.append(shlex.join(["tarazu", *words]))
        cli.main()
    environment = read_json(folder / "environment.json")
    assert [entry["command"] for entry in environment["extended"]] == commands and {
        key: environment[key] for key in began
    } == began
    assert all(
        entry["started"] >= began["started"] and entry["device"] == began["device"]
        for entry in environment["extended"]
    )
    page = html.unescape(build(folder).read_text(encoding="utf-8"))
    positions = [page.index(command) for command in (began["command"], *commands)]
    assert (
        positions == sorted(positions)
        and "after the command that created it" in page
        and "tarazu merge combined them" not in page
    )
    shutil.rmtree(folder / "base")
    merged = merge.merge([str(folder), parts[1]], str(tmp_path / "out"))
    assert [
        len(part.get("extended", []))
        for part in read_json(merged.path / "environment.json")["parts"]
    ] == [2, 1]
    page = html.unescape(build(merged.path).read_text(encoding="utf-8"))
    assert all(command in page for command in commands) and "tarazu merge combined them" in page


@pytest.fixture
def parts(home, tmp_path):
    return [str(shutil.copytree(home / name, tmp_path / name)) for name in ("a", "b")]


def results(folder) -> list[dict]:
    """The rows of results.json without times and memory."""
    return [
        {key: value for key, value in row.items() if key not in TIMES}
        for row in read_json(folder / "results.json")["rows"]
    ]


def test_merged_parts_equal_the_complete_study(home, parts, tmp_path, undrawn):
    folder = merge.merge(parts, str(tmp_path / "out"))
    assert results(folder.path) == results(home / "whole") and folder.method_order() == [
        "base",
        "lora",
        "layers",
    ]
    for name in ("lora", "layers"):
        ours, theirs = (
            read_json(root / name / "search.json") for root in (folder.path, home / "whole")
        )
        assert ours["winner"] == theirs["winner"] and ours["loss"] == theirs["loss"]
    assert [m["method"] for m in read_json(folder.path / "estimate.json")["methods"]] == [
        "base",
        "lora",
        "layers",
    ]
    assert [part["methods"] for part in read_json(folder.path / "environment.json")["parts"]] == [
        ["layers"],
        ["base", "lora"],
    ]
    assert (
        not list(folder.path.rglob("checkpoint"))
        and (folder.path / "layers/seed-1/weights.safetensors").exists()
    )
    assert runner.read_recipe(folder) == runner.read_recipe(runner.find_study(home / "whole"))
    assert "each run separately" in build(folder.path).read_text(encoding="utf-8")
    before = (folder.path / "lora/seed-0/metrics.json").stat().st_mtime_ns
    study_commands.resume(str(folder.path))
    assert (folder.path / "lora/seed-0/metrics.json").stat().st_mtime_ns == before


def test_unfinished_runs_are_skipped(parts, tmp_path, capsys):
    run = tmp_path / "a" / "layers" / "seed-1" / "run.json"
    write_json(run, {**read_json(run), "status": "stopped"})
    folder = merge.merge(parts, str(tmp_path / "out"))
    assert not (folder.path / "layers/seed-1").exists() and len(results(folder.path)) == 4
    assert "skipped, because it is not finished" in capsys.readouterr().err


def test_verifications_of_all_parts_are_merged(parts, tmp_path):
    for part, name, verdict in zip(parts, ("layers", "lora"), ("ok", "failed"), strict=True):
        checks = [{"name": "n", "verdict": verdict}]
        write_json(
            tmp_path / part / "verify.json",
            {"methods": [{"method": name, "checks": checks}], "counts": {}, "verdict": verdict},
        )
    merged = read_json(merge.merge(parts, str(tmp_path / "out")).path / "verify.json")
    assert (
        merged["counts"] == {"ok": 1, "failed": 1, "not applicable": 0}
        and merged["verdict"] == "failed"
    )
    assert [m["method"] for m in merged["methods"]] == ["lora", "layers"]


def test_the_more_complete_verification_of_a_method_counts(parts, tmp_path):
    for part, device, waiting, names in zip(
        parts, ("H200", "H100"), (["layers"], []), ("a", "ab"), strict=True
    ):
        checks = [{"name": name, "verdict": "ok"} for name in names]
        write_json(
            tmp_path / part / "verify.json",
            {
                "device": {"name": device},
                "methods": [{"method": "layers", "checks": checks}],
                "waiting": waiting,
                "counts": {},
                "verdict": "ok",
            },
        )
    for order in (parts, parts[::-1]):
        merged = read_json(
            merge.merge(order, str(tmp_path / f"out{order[0][-1]}")).path / "verify.json"
        )
        assert (
            merged["waiting"] == []
            and merged["counts"]["ok"] == 2
            and merged["methods"][0]["device"] == {"name": "H100"}
        )


def test_seeds_of_a_method_from_two_parts(home, tmp_path, undrawn):
    """Each part lists its seeds, and the first part's estimate counts."""
    first, second = (tmp_path / name for name in ("first", "second"))
    for path, gone in ((first, 1), (second, 0)):
        shutil.copytree(home / "a", path)
        shutil.rmtree(path / "layers" / f"seed-{gone}")
    expected = read_json(second / "estimate.json")
    write_json(
        second / "estimate.json",
        {**expected, "methods": [{**entry, "memory": 7} for entry in expected["methods"]]},
    )
    folder = merge.merge([str(first), str(second)], str(tmp_path / "out"))
    assert [
        (part["methods"], part["seeds"])
        for part in read_json(folder.path / "environment.json")["parts"]
    ] == [(["layers"], {"layers": [0]}), (["layers"], {"layers": [1]})]
    assert [entry["memory"] for entry in read_json(folder.path / "estimate.json")["methods"]] != [7]
    environment = read_json(folder.path / "environment.json")
    environment["parts"][1]["device"] = {"name": "another"}
    write_json(folder.path / "environment.json", environment)
    method, cost = read_study(folder.path).method("layers"), METRICS.by_key["train_seconds"]
    assert [run.on_other_device for run in method.runs] == [False, True]
    assert (
        seed_values(method, cost) == [cost.of(method.runs[0])]
        and len(seed_values(method, METRICS.by_key["loss"])) == 2
    )
    assert ">layers</code> (seed <bdi class=n dir=ltr>1</bdi>)" in build(folder.path).read_text(
        encoding="utf-8"
    )


def test_a_merged_study_can_be_merged_again(home, tmp_path):
    parts = [shutil.copytree(home / "a", tmp_path / str(seed)) for seed in (0, 1)]
    for seed, part in enumerate(parts):
        shutil.rmtree(part / "layers" / f"seed-{1 - seed}")
    before = merge.merge([str(part) for part in parts], str(tmp_path / "before")).path
    folder = merge.merge([str(before), str(home / "b")], str(tmp_path / "out"))
    assert [part["seeds"] for part in read_json(folder.path / "environment.json")["parts"]] == [
        {"layers": [0]},
        {"layers": [1]},
        {"base": [0], "lora": [0, 1]},
    ]


def test_the_report_knows_which_part_has_which_seed(home, tmp_path, undrawn):
    """One part has both seeds of LoRA and one seed of `layers`; the other part has the other."""
    first, second = (shutil.copytree(home / name, tmp_path / name) for name in ("a", "whole"))
    shutil.rmtree(first / "layers" / "seed-0")
    shutil.rmtree(second / "layers" / "seed-1")
    folder = merge.merge([str(first), str(second)], str(tmp_path / "out"))
    environment = read_json(folder.path / "environment.json")
    assert environment["parts"][1]["seeds"] == {"base": [0], "layers": [0], "lora": [0, 1]}
    environment["parts"][0]["device"] = {"name": "another"}
    write_json(folder.path / "environment.json", environment)
    study = read_study(folder.path)
    assert [
        [run.on_other_device for run in study.method(name).runs] for name in ("layers", "lora")
    ] == [
        [False, True],
        [False, False],
    ]
    text = build(folder.path).read_text(encoding="utf-8")
    assert (
        all(f">layers</code> (seed <bdi class=n dir=ltr>{seed}</bdi>)" in text for seed in (0, 1))
        and ">lora</code> (seed" not in text
    )


def test_incompatible_parts_are_refused(home, parts, tmp_path):
    out = str(tmp_path / "out")
    with pytest.raises(UserError, match="layers with seed 0 is in"):
        merge.merge([parts[0], parts[0]], out)
    for name, key, value in (
        ("data.json", "sha256", "0" * 64),
        ("environment.json", "packages", {"torch": "1.0"}),
    ):
        path = tmp_path / "b" / name
        good = read_json(path)
        write_json(path, {**good, key: value})
        with pytest.raises(UserError, match="sha256" if name == "data.json" else "versions"):
            merge.merge(parts, out)
        write_json(path, good)
    resolved = tmp_path / "b" / "resolved.yaml"
    resolved.write_text(resolved.read_text().replace("tokens: 3000", "tokens: 4000"))
    with pytest.raises(UserError, match="in: budget"):
        merge.merge(parts, out)
    with pytest.raises(UserError, match="not empty"):
        merge.merge([str(home / "a")], str(home / "b"))
