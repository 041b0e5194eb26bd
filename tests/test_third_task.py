"""A task of another package goes through every command, and no file of tarazu knows of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import tarazu

SOURCE = Path(tarazu.__file__).parent
THIRD_TASK = Path(__file__).parent / "third_task"
RECIPE = """\
task: digits
budget: {epochs: EPOCHS, batch_rows: 20, micro_batch_tokens: 64}
seeds: [0, 1]
methods:
  linear: {learning_rate: 0.05}
  mlp: {learning_rate: 0.02, hidden_size: 16}
"""


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "tarazu", *map(str, words)]


def environment() -> dict[str, str]:
    paths = os.pathsep.join([str(THIRD_TASK), str(SOURCE.parent)])
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}


def tarazu_run(*words: object) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command(*words), env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("digits")
    (home / "recipe.yaml").write_text(RECIPE.replace("EPOCHS", "8"))
    tarazu_run("run", home / "recipe.yaml", "--out", home / "study")
    return home / "study"


def test_check_estimates_it(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("EPOCHS", "8"))
    found = json.loads(tarazu_run("check", tmp_path / "recipe.yaml", "--json").stdout)
    methods = {entry["method"]: entry for entry in found["estimate"]["methods"]}
    assert methods["mlp"]["works"] and methods["mlp"]["how"] == "measured"
    assert "240 rows" in tarazu_run("check", tmp_path / "recipe.yaml").stdout


def test_run_trains_it(study: Path) -> None:
    rows = json.loads((study / "results.json").read_text())["rows"]
    assert [(row["method"], row["seed"], row["status"]) for row in rows] == [
        ("linear", 0, "done"),
        ("linear", 1, "done"),
        ("mlp", 0, "done"),
        ("mlp", 1, "done"),
    ]
    assert all(row["accuracy"] > 0.6 for row in rows)


def test_a_killed_study_resumes_to_the_same_bytes(study: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("EPOCHS", "8"))
    words = command("run", tmp_path / "recipe.yaml", "--out", tmp_path / "study")
    process = subprocess.Popen(words, env=environment(), stderr=subprocess.DEVNULL)
    events = tmp_path / "study" / "linear" / "seed-0" / "events.jsonl"
    while process.poll() is None and not (events.exists() and events.stat().st_size > 2000):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    tarazu_run("resume", tmp_path / "study")
    for run in ("linear/seed-0", "linear/seed-1", "mlp/seed-0", "mlp/seed-1"):
        uninterrupted = (study / run / "weights.safetensors").read_bytes()
        assert (tmp_path / "study" / run / "weights.safetensors").read_bytes() == uninterrupted


def test_verify_checks_it(study: Path) -> None:
    tarazu_run("verify", study)
    found = json.loads((study / "verify.json").read_text())
    names = {check["name"] for check in found["methods"][0]["checks"]}
    assert found["verdict"] == "ok" and "resumed = uninterrupted" in names


def test_report_shows_it(study: Path) -> None:
    page = Path(tarazu_run("report", study).stdout.strip()).read_text(encoding="utf-8")
    assert "mlp" in page and "linear" in page and "accuracy" in page


def test_no_file_of_tarazu_knows_it() -> None:
    files = [path for path in SOURCE.rglob("*.py") if path.name != "tasks.py"]
    assert not [path for path in files if "digits:TASK" in path.read_text(encoding="utf-8")]
