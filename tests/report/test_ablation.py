"""The ablation table: shown where methods share a kind, with the run folder's numbers."""

from __future__ import annotations

import json
import random

from caption_folders import caption_run, captions_folder
from folders import write

from tarazu.report.analysis.comparison import compare
from tarazu.report.analysis.recommendation import recommend
from tarazu.report.analysis.study_view import read_study
from tarazu.report.build import build
from tarazu.report.render.figures import FigureWriter
from tarazu.report.sections.captions import REPORT
from tarazu.report.sections.captions.ablation import ablation_view, changed_settings, groups
from tarazu.report.sections.common.base import Context

METHODS = {
    "plain": {"dropout": 0.0},
    "dropout": {"dropout": 0.5},
    "tuned": {"dropout": 0.5, "fine_tune": {"blocks": 4}},
}


def study_of(folder, methods=METHODS, ensemble=False):
    """A captions study whose methods are all Show and Tell."""
    captions_folder(folder)
    ids = [f"drawn-{i:03d}.jpg" for i in range(12)]

    def caption(i: int) -> str:
        return f"a red circle near square number {i}"

    for i, (name, settings) in enumerate(methods.items()):
        run = folder / name / "seed-0"
        caption_run(run, name, 40.0 + 25 * i, ids, caption)
        run_info = json.loads((run / "run.json").read_text())
        settings = {"learning_rate": 1e-3, **settings}
        write(run / "run.json", {**run_info, "kind": "show_and_tell", "settings": settings})
    if ensemble:
        run = folder / "both" / "seed-0"
        caption_run(run, "both", 70.0, ids, caption)
        (run / "events.jsonl").unlink()
        run_info = {"name": "both", "kind": "ensemble", "seed": 0, "status": "done"}
        settings = {"members": ["dropout/seed-0", "plain"]}
        write(run / "run.json", {**run_info, "trained_parameters": 0, "settings": settings})
    write(
        folder / "method_order.json",
        {"methods": [*methods, "both", "show_and_tell", "show_attend_tell", "transformer"]},
    )
    return read_study(folder)


def context_of(study) -> Context:
    comparison = compare(study, REPORT.metrics)
    figures = FigureWriter(study.path / "figures")
    return Context(study, REPORT, comparison, recommend(study, comparison), figures)


def test_only_kinds_with_several_methods_have_an_ablation(tmp_path):
    assert groups(read_study(captions_folder(tmp_path / "three")).methods) == []
    (group,) = groups(study_of(tmp_path / "more", ensemble=True).methods)
    assert [method.name for method in group] == [
        "plain",
        "dropout",
        "tuned",
        "show_and_tell",
        "both",
    ]


def test_changed_settings_are_written_as_in_a_recipe(tmp_path):
    plain, dropout, tuned, _, both = groups(study_of(tmp_path, ensemble=True).methods)[0]
    assert changed_settings(plain, dropout) == ["dropout: 0.5"]
    assert changed_settings(plain, tuned) == ["dropout: 0.5", "fine_tune: {blocks: 4}"]
    assert changed_settings(plain, both) == ["ensemble: dropout, plain"]


def test_table_has_the_values_of_the_files(tmp_path, undrawn):
    context = context_of(study_of(tmp_path))
    (view,) = ablation_view(context)
    columns = [column.plain("en") for column in view["table"].columns]
    rows = {
        row[0].html.plain("en"): dict(zip(columns, row, strict=True)) for row in view["table"].rows
    }
    events = [
        json.loads(line)
        for line in (tmp_path / "dropout/seed-0/events.jsonl").read_text().splitlines()
    ]
    losses = [e["loss"] for e in events if e["event"] == "validation"]
    metrics = json.loads((tmp_path / "dropout/seed-0/metrics.json").read_text())["decoding"][
        "beam3"
    ]
    row = rows["dropout"]
    assert f"{min(losses):.3f}, {losses[-1]:.3f}" in row["validation loss: best, final"].html.plain(
        "en"
    )
    assert row["CIDEr"].sort == metrics["cider"] and row["BLEU-4"].sort == metrics["bleu"][3]
    assert f"{metrics['intervals']['cider'][0]:.1f}" in row["CIDEr"].html.plain("en")

    def ciders(name):
        return [
            json.loads(line)["scores"]["cider"]
            for line in (tmp_path / f"{name}/seed-0/samples.jsonl").read_text().splitlines()
        ]

    mean = sum(a - b for a, b in zip(ciders("dropout"), ciders("plain"), strict=True)) / 12
    assert abs(row["CIDEr difference from the first"].sort - mean) < 1e-9
    assert rows["plain"]["CIDEr difference from the first"].sort == 0.0


def test_sentences_name_significant_differences_and_overfitting(tmp_path, undrawn):
    study_of(tmp_path)
    path, rng = tmp_path / "plain/seed-0/events.jsonl", random.Random(0)
    events = [json.loads(line) for line in path.read_text().splitlines()]
    for event in events:
        if event["event"] == "validation" and event["epoch"] > 3:
            event["loss"] += 1 + rng.random()
    write(path, events)
    (view,) = ablation_view(context_of(read_study(tmp_path)))
    text = " ".join(sentence.plain("en") for sentence in view["sentences"])
    assert (
        "Better than plain in CIDEr: tuned (+" in text
        and "(overfitting) for plain (+1." in text
        and "after epoch 2.5" in text
    )


def test_page_has_the_ablation_in_both_languages(tmp_path, undrawn):
    study_of(tmp_path, ensemble=True)
    page = build(tmp_path).read_text(encoding="utf-8")
    assert 'id="comparison-ablation-show_and_tell"' in page
    assert "Every method compared with the first" in page and "هر شاخه در کنار شاخهٔ نخست" in page
    assert "comparison-ablation" not in build(captions_folder(tmp_path / "other")).read_text(
        encoding="utf-8"
    )
