"""Building a report: its files, its size, and studies with missing, broken or strange files."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
from caption_folders import captions_folder
from folders import chat_folder, write
from pages import Page, built_text, says

from tarazu.errors import UserError
from tarazu.report.build import build

FILES = [
    "resolved.yaml",
    "environment.json",
    "data.json",
    "model.json",
    "method_order.json",
    "verify.json",
    "judge.json",
    "lora/search.json",
    "base/seed-0/metrics.json",
    "base/seed-0/samples.jsonl",
    "base/seed-0/ledger.json",
    "lora/seed-0/run.json",
    "lora/seed-0/events.jsonl",
    "lora/seed-0/ledger.json",
    "lora/seed-0/fingerprint.json",
    "lora/seed-0/metrics.json",
    "lora/seed-0/samples.jsonl",
]
DAMAGE = {"broken": "{ not json", "list": "[1, 2]", "null": "null"}


def csv_rows(folder: Path) -> list[dict[str, str]]:
    text = (folder / "results.csv").read_text(encoding="utf-8-sig")
    return list(csv.DictReader(text.splitlines()))


def test_page_opens_in_the_language_of_the_data(tmp_path, undrawn):
    chat_folder(tmp_path / "fa")
    captions_folder(tmp_path / "en")
    assert '<html lang="fa" dir="rtl">' in build(tmp_path / "fa").read_text(encoding="utf-8")
    assert '<html lang="en" dir="ltr">' in build(tmp_path / "en").read_text(encoding="utf-8")


def test_results_csv_has_a_row_for_every_run(tmp_path, undrawn):
    methods = ("prompt_tuning", "lora", "lora_high_rank", "layers")
    chat_folder(tmp_path, seeds=(0, 1), methods=methods)
    build(tmp_path)
    runs = [(row["method"], row["seed"]) for row in csv_rows(tmp_path)]
    assert runs == [("base", "0"), *[(name, seed) for name in methods for seed in "01"]]
    metrics = json.loads((tmp_path / "lora/seed-1/metrics.json").read_text())
    row = csv_rows(tmp_path)[runs.index(("lora", "1"))]
    assert float(row["loss"]) == metrics["loss"]


@pytest.mark.parametrize("damage", ["missing", *DAMAGE])
def test_any_file_may_be_missing_broken_or_empty(tmp_path, damage, undrawn):
    folder = chat_folder(tmp_path, methods=("lora", "layers"))
    for name in FILES:
        content = (folder / name).read_bytes()
        if damage == "missing":
            (folder / name).unlink()
        else:
            (folder / name).write_text(DAMAGE[damage])
        text = built_text(folder).replace(" ", "")
        assert "lora" in text, name
        if damage in ("broken", "list") and not name.endswith((".jsonl", ".yaml")):
            assert says(text, "overview.unreadable", files=name), name
        (folder / name).write_bytes(content)


@pytest.mark.parametrize("make", [chat_folder, captions_folder])
@pytest.mark.parametrize("value", [7, [["x"]], {"a": [1]}])
def test_values_of_another_type_are_left_out(tmp_path, make, value, undrawn):
    """Replace all values of a JSON file, and for 7 also the values one level down.

    Files of one name are changed together, because a build takes a while; in every second run first
    and then in the others, so that a changed file stands next to a sound one.
    """
    folder, paths_of = make(tmp_path), defaultdict(list)
    for path in sorted(folder.rglob("*.json")):
        paths_of[path.name].append(path)
    halves = [half for paths in paths_of.values() for half in (paths[::2], paths[1::2]) if half]
    for paths in halves:
        contents = {path: json.loads(path.read_text(encoding="utf-8")) for path in paths}
        for one_level_down in (False, True) if value == 7 else (False,):
            for path, content in contents.items():
                if one_level_down:
                    changed = {
                        key: dict.fromkeys(inner, value) if isinstance(inner, dict) else inner
                        for key, inner in content.items()
                    }
                else:
                    changed = dict.fromkeys(content, value)
                write(path, changed)
            assert "</html>" in build(folder).read_text(encoding="utf-8")
        for path, content in contents.items():
            write(path, content)


def test_empty_folder_gives_a_report(tmp_path, undrawn):
    assert says(built_text(tmp_path), "recommendation.none")
    with pytest.raises(UserError, match="no such run folder"):
        build(tmp_path / "nowhere")


def test_report_imports_no_torch():
    sections = "tarazu.report.sections"
    imports = f"import sys, tarazu.report.build, {sections}.chat, {sections}.captions"
    probe = f"{imports}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", probe], check=False).returncode == 0


def lengthen_answers(folder: Path) -> None:
    """Give every sample of a study an answer of 20,000 characters."""
    for path in folder.glob("*/seed-0/samples.jsonl"):
        samples = [json.loads(line) for line in path.read_text().splitlines()]
        write(path, [{**sample, "output": "سلام " * 4000} for sample in samples])


def test_long_answers_are_cut_to_fit_the_page(tmp_path, undrawn, monkeypatch):
    folder = chat_folder(tmp_path)
    full = len(build(folder).read_bytes())
    monkeypatch.setattr("tarazu.report.build.MAX_PAGE_BYTES", full - 1000)
    assert len(build(folder).read_bytes()) <= full
    lengthen_answers(folder)
    monkeypatch.setattr("tarazu.report.build.MAX_PAGE_BYTES", 2_900_000)
    page = build(folder).read_text(encoding="utf-8")
    assert len(page.encode()) < 3_000_000
    assert says(" ".join(Page(page).text), "common.cut", total="20,000")


def test_large_page_is_filled_with_answers(tmp_path, undrawn, monkeypatch):
    """A third of the answers fits easily; the rest of the page is filled too."""
    folder = chat_folder(tmp_path)
    lengthen_answers(folder)
    full = len(build(folder).read_bytes())
    monkeypatch.setattr("tarazu.report.build.MAX_PAGE_BYTES", full - 30_000)
    assert full - 90_000 < len(build(folder).read_bytes()) <= full - 30_000


def test_large_study_shows_some_questions_and_links_the_files(tmp_path, undrawn):
    folder = chat_folder(tmp_path, seeds=(0, 1, 2))
    for path in folder.glob("*/seed-*/samples.jsonl"):
        sample = json.loads(path.read_text().splitlines()[0]) | {"output": "پاسخی بلند " * 400}
        abilities = ["facts"] * 300 + ["chat"] * 100
        write(path, [{**sample, "id": f"q-{i:04d}", "ability": a} for i, a in enumerate(abilities)])
    page = build(folder).read_text(encoding="utf-8")
    assert len(page.encode()) < 3_000_000
    assert re.search(r"\d+ of 400 questions are shown", " ".join("".join(Page(page).text).split()))
    answers = page[page.index('id="comparison-answers"') :]
    assert 'data-ability="chat"' in answers and 'href="./lora/seed-0/samples.jsonl"' in answers


def test_task_without_a_report_gets_the_general_one(tmp_path, undrawn):
    """Its metrics are the numbers of results.json; loss decides, accuracy is better when higher."""
    folder = chat_folder(tmp_path, methods=("lora", "layers"))
    recipe = (folder / "resolved.yaml").read_text().replace("task: chat", "task: digits")
    (folder / "resolved.yaml").write_text(recipe)
    rows = [
        {"method": name, "seed": 0, "loss": loss, "accuracy": accuracy, "train_seconds": 9.0}
        for name, loss, accuracy in (("lora", 2.4, 0.9), ("layers", 2.55, 0.95))
    ]
    write(folder / "results.json", {"task": "digits", "rows": rows})
    page = build(folder).read_text(encoding="utf-8")
    assert 'id="methods"' in page and 'id="method-layers-curves"' in page
    assert says(" ".join(Page(page).text), "page.title")
    *_, layers = csv_rows(folder)
    assert list(layers)[4:7] == ["loss", "accuracy", "train_seconds"]
    assert layers["method"] == "layers" and layers["accuracy"] == "0.95"
