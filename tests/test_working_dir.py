"""A study with relative paths in its recipe works from any folder, and so do its models."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from chat import small

from tarazu.commands import run as study_commands
from tarazu.storage.run_folder import StudyDir


def tarazu(folder: Path, *words: str) -> subprocess.CompletedProcess:
    """Run the command in a process of its own, in `folder`."""
    return subprocess.run(
        [sys.executable, "-m", "tarazu", *words],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with a model, rows, a recipe with relative paths to both, and its study."""
    root = tmp_path_factory.mktemp("project")
    small.save_model(root / "model")
    shutil.copyfile(small.SAMPLES / "chat_fa.jsonl", root / "rows.jsonl")
    data = {
        "source": "rows.jsonl",
        "split": {"train": 0.8, "validation": 0.1, "test": 0.1},
        "max_length": 256,
    }
    small.recipe(
        root / "recipe.yaml",
        Path("model"),
        data=data,
        methods={"base": {}, "lora": small.METHODS["lora"]},
        forgetting=None,
    )
    with contextlib.chdir(root):
        study_commands.run("recipe.yaml", "study", ["lora"], ["budget.tokens=3000"])
    return root


def test_resume_from_another_folder(project, tmp_path):
    state = project / "study" / "lora" / "seed-0" / "run.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), "status": "stopped"}))
    done = tarazu(tmp_path, "resume", str(project / "study"))
    assert done.returncode == 0, done.stderr
    assert json.loads(state.read_text())["status"] == "done" and list(tmp_path.iterdir()) == []


def test_chat_and_export_from_another_folder(project, tmp_path):
    (tmp_path / "link").symlink_to(project)
    there = tarazu(tmp_path, "chat", "link/study/lora", "--prompt", "سلام", "--max-new-tokens", "4")
    assert there.returncode == 0 and there.stdout, there.stderr
    done = tarazu(tmp_path, "export", "link/study/lora", "--to", "exported")
    assert done.returncode == 0 and (tmp_path / "exported" / "model.safetensors").exists(), (
        done.stderr
    )


def test_paths_count_from_the_current_folder_if_the_first_is_gone(project, tmp_path):
    moved = shutil.copytree(project, tmp_path / "moved")
    (moved / "study" / "working_dir.json").write_text('{"working_dir": "/no/such/folder"}')
    done = tarazu(moved, "chat", "study/lora", "--prompt", "سلام", "--max-new-tokens", "4")
    assert done.returncode == 0, done.stderr
    with StudyDir(moved / "study").in_working_dir() as found:
        assert found.path == moved / "study"
