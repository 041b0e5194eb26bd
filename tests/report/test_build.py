"""Building a report: its files, its size, and studies with missing, broken or strange files."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys

import pytest
from caption_folders import captions_folder
from folders import chat_folder, write
from pages import Page

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
]
FILES += [
    f"lora/seed-0/{name}"
    for name in (
        "run.json",
        "events.jsonl",
        "ledger.json",
        "fingerprint.json",
        "metrics.json",
        "samples.jsonl",
    )
]


def test_page_opens_in_the_language_of_the_data(tmp_path, undrawn):
    chat_folder(tmp_path / "fa")
    captions_folder(tmp_path / "en")
    assert '<html lang="fa" dir="rtl">' in build(tmp_path / "fa").read_text(encoding="utf-8")
    assert '<html lang="en" dir="ltr">' in build(tmp_path / "en").read_text(encoding="utf-8")


def test_results_csv_has_a_row_for_every_run(tmp_path, undrawn):
    chat_folder(tmp_path, seeds=(0, 1))
    build(tmp_path)
    rows = list(
        csv.DictReader((tmp_path / "results.csv").read_text(encoding="utf-8-sig").splitlines())
    )
    assert len(rows) == 9 and {row["method"] for row in rows} == {
        "base",
        "prompt_tuning",
        "lora",
        "lora_high_rank",
        "layers",
    }
    metrics = json.loads((tmp_path / "lora/seed-1/metrics.json").read_text())
    assert (
        float(next(r for r in rows if r["method"] == "lora" and r["seed"] == "1")["loss"])
        == metrics["loss"]
    )


@pytest.mark.parametrize("harm", ["missing", "broken", "list", "null"])
def test_any_file_may_be_missing_broken_or_empty(tmp_path, harm, undrawn):
    folder = chat_folder(tmp_path, methods=("lora", "layers"))
    for name in FILES:
        whole = (folder / name).read_bytes()
        if harm == "missing":
            (folder / name).unlink()
        else:
            (folder / name).write_text(
                {"broken": "{ not json", "list": "[1, 2]", "null": "null"}[harm]
            )
        page = build(folder).read_text(encoding="utf-8").replace("<wbr>", "")
        assert "lora" in page, name
        if harm in ("broken", "list") and not name.endswith((".jsonl", ".yaml")):
            assert "could not be read" in page and name in page, name
        (folder / name).write_bytes(whole)


@pytest.mark.parametrize("make", [chat_folder, captions_folder])
@pytest.mark.parametrize("value", [7, [["x"]], {"a": [1]}])
def test_values_of_another_type_are_left_out(tmp_path, make, value, undrawn):
    """Every value of every file, and the values one level down: one name after the other, in every second run and then in the others."""
    folder, named = make(tmp_path), {}
    for path in sorted(folder.rglob("*.json")):
        named.setdefault(path.name, []).append(path)
    for paths in (
        half for same in named.values() for half in (same[::2], same[1::2]) if half
    ):  # beside sound ones: each build takes a while
        whole = {path: path.read_text(encoding="utf-8") for path in paths}
        for deep in (False, True)[: 1 + (value == 7)]:
            for path, text in whole.items():
                tree = json.loads(text)
                inner = {
                    k: dict.fromkeys(v, value) if isinstance(v, dict) else v
                    for k, v in tree.items()
                }
                path.write_text(
                    json.dumps(inner if deep else dict.fromkeys(tree, value)), encoding="utf-8"
                )
            assert "</html>" in build(folder).read_text(encoding="utf-8")
        for path, text in whole.items():
            path.write_text(text, encoding="utf-8")


def test_empty_folder_gives_a_report(tmp_path, undrawn):
    assert "nothing can be recommended" in build(tmp_path).read_text(encoding="utf-8")
    with pytest.raises(UserError, match="no such run folder"):
        build(tmp_path / "nowhere")


def test_report_imports_no_torch():
    probe = "import sys; import tarazu.report.build, tarazu.report.sections.chat, tarazu.report.sections.captions; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", probe], check=False).returncode == 0


def test_long_answers_are_cut_to_fit_the_page(tmp_path, undrawn, monkeypatch):
    """However much the methods said, the page stays small: answers are cut further, and say so."""
    folder = chat_folder(tmp_path)
    full = len(build(folder).read_bytes())
    monkeypatch.setattr("tarazu.report.build.MAX_PAGE_BYTES", full - 1000)
    assert len(build(folder).read_bytes()) <= full
    for path in folder.glob("*/seed-0/samples.jsonl"):
        samples = [
            {**json.loads(line), "output": "سلام " * 4000} for line in path.read_text().splitlines()
        ]
        path.write_text("".join(json.dumps(s) + "\n" for s in samples))
    monkeypatch.setattr("tarazu.report.build.MAX_PAGE_BYTES", 2_900_000)
    text = build(folder).read_text(encoding="utf-8")
    assert len(text.encode()) < 3_000_000 and "of 20,000 characters" in "".join(Page(text).text)


def test_large_study_shows_some_questions_and_links_the_files(tmp_path, undrawn):
    folder = chat_folder(tmp_path, seeds=(0, 1, 2))
    for file in folder.glob("*/seed-*/samples.jsonl"):
        row = json.loads(file.read_text().splitlines()[0]) | {"output": "پاسخی بلند " * 400}
        rows = [
            {**row, "id": f"q-{i:04d}", "ability": "facts" if i < 300 else "chat"}
            for i in range(400)
        ]
        file.write_text("".join(json.dumps(one) + "\n" for one in rows))
    page = build(folder).read_text(encoding="utf-8")
    text = "".join(Page(page).text)
    assert len(page.encode()) < 3_000_000 and re.search(r"\d+ of the 400 questions are shown", text)
    beside = page[page.index('id="comparison-answers"') :]
    assert 'data-ability="chat"' in beside and 'href="./lora/seed-0/samples.jsonl"' in beside


def test_large_page_is_filled_with_answers(tmp_path, undrawn, monkeypatch):
    """A third of the answers would fit well: what is left over is used."""
    folder = chat_folder(tmp_path)
    for path in folder.glob("*/seed-0/samples.jsonl"):
        samples = [
            {**json.loads(line), "output": "سلام " * 4000} for line in path.read_text().splitlines()
        ]
        path.write_text("".join(json.dumps(s) + "\n" for s in samples))
    whole = len(build(folder).read_bytes())
    monkeypatch.setattr("tarazu.report.build.MAX_PAGE_BYTES", whole - 30_000)
    assert whole - 90_000 < len(build(folder).read_bytes()) <= whole - 30_000


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
    assert "tarazu report: training methods, compared" in page
    header, *lines = (folder / "results.csv").read_text(encoding="utf-8-sig").splitlines()
    assert header.startswith("method,kind,seed,status,loss,accuracy,train_seconds")
    assert any(line.startswith("layers,layers,0,done,") and ",0.95," in line for line in lines)
