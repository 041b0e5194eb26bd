"""What the sections of the report say of studies with special features."""

from __future__ import annotations

import json
import re

from caption_folders import captions_folder
from folders import chat_folder
from pages import Page

from tarazu.report.build import build


def test_null_numbers_are_shown_as_not_measured(tmp_path, undrawn):
    folder = chat_folder(tmp_path)
    path = folder / "lora/seed-0/metrics.json"
    metrics = json.loads(path.read_text())
    metrics |= {
        "loss": None,
        "row_losses": None,
        "perplexity": None,
        "generation": {"test": {"chrf": None}},
        "abilities": None,
    }
    path.write_text(json.dumps(metrics))
    assert "not measured" in build(folder).read_text(encoding="utf-8")


def test_failed_run_is_reported(tmp_path, undrawn):
    folder = chat_folder(tmp_path)
    facts = json.loads((folder / "lora/seed-0/run.json").read_text())
    (folder / "lora/seed-0/run.json").write_text(
        json.dumps({**facts, "status": "failed", "error": "out of memory at step 7"})
    )
    for name in ("metrics.json", "fingerprint.json", "ledger.json", "samples.jsonl"):
        (folder / f"lora/seed-0/{name}").unlink()
    page = build(folder).read_text(encoding="utf-8")
    assert (
        "out of memory at step 7" in page
        and "so there is no proof" in page
        and "با خطا متوقف شد" in page
    )


def test_failed_proof_is_an_alarm(tmp_path, undrawn):
    folder = chat_folder(tmp_path)
    path = folder / "lora/seed-0/fingerprint.json"
    path.write_text(
        json.dumps(
            {
                **json.loads(path.read_text()),
                "verdict": "failed",
                "unexpectedly_changed": ["model.embed.weight"],
            }
        )
    )
    page = build(folder).read_text(encoding="utf-8").replace("<wbr>", "")
    assert "model.embed.weight" in page and "which is not what should have happened" in page


def test_image_outside_the_folder_is_not_shown(tmp_path, undrawn):
    folder = captions_folder(tmp_path / "study")
    (tmp_path / "secret.jpg").write_bytes((folder / "images/drawn-000.jpg").read_bytes())
    samples = [
        json.loads(line)
        for line in (folder / "transformer/seed-0/samples.jsonl").read_text().splitlines()
    ]
    for sample in samples:
        sample["image"] = "../secret.jpg"
    (folder / "transformer/seed-0/samples.jsonl").write_text(
        "".join(json.dumps(s) + "\n" for s in samples)
    )
    page = build(folder).read_text(encoding="utf-8")
    assert "picture not in the folder" in page


def test_search_reports_its_cost_and_extended_range(tmp_path, undrawn):
    folder = chat_folder(tmp_path)
    plain = json.loads((folder / "lora/search.json").read_text())
    (folder / "layers/search.json").write_text(json.dumps(plain))
    assert "did not cost the same" not in build(folder).read_text(encoding="utf-8")
    beyond = {
        "settings": {"learning_rate": 0.03},
        "rounds": [{"tokens": 5000, "loss": 2.5}],
        "extended": True,
    }
    wider = {
        **plain,
        "tokens": 20_000,
        "tokens_extended": 5_000,
        "candidates": [*plain["candidates"], beyond],
    }
    (folder / "layers/search.json").write_text(json.dumps(wider))
    shown = "".join(Page(build(folder).read_text(encoding="utf-8")).text)
    assert "beyond it under the same rule, to 0.03 (5,000 of those tokens)" in shown
    assert (
        "did not cost the same: from 15,000 to 20,000 tokens" in shown
        and "پس بیرون از فهرست نیز 0.03" in shown
    )


def test_search_reports_the_schedule_of_its_trials(tmp_path, undrawn):
    """A folder from before `schedule` was written down had trials at a constant rate: nothing else is said of it."""
    folder = chat_folder(tmp_path)
    old = "".join(Page(build(folder).read_text(encoding="utf-8")).text)
    assert "the better half going on each round" in old and "whole run in small" not in old
    found = json.loads((folder / "lora/search.json").read_text())
    (folder / "lora/search.json").write_text(json.dumps({**found, "schedule": "cosine"}))
    new = "".join(Page(build(folder).read_text(encoding="utf-8")).text)
    assert (
        "the real run’s schedule (cosine) to its end" in new
        and "یک اجرای کامل ولی کوتاه" in new
        and "noisy until then" in new
    )
    (folder / "lora/search.json").write_text(json.dumps({**found, "schedule": "constant"}))
    assert "noisy until then" not in build(folder).read_text(encoding="utf-8")


def test_tokenizer_of_the_metrics_is_named(tmp_path, undrawn):
    folder = captions_folder(tmp_path)
    shown = "".join(Page(build(folder).read_text(encoding="utf-8")).text)
    assert "tokenizer is ptb_like: lower case" in shown and "واژه‌برِ سنجه‌ها ptb_like است" in shown
    for path in folder.glob("*/seed-0/metrics.json"):
        path.write_text(path.read_text().replace("ptb_like", path.parent.parent.name))
    shown = "".join(Page(build(folder).read_text(encoding="utf-8")).text)
    assert "tokenizer is show_and_tell, show_attend_tell and transformer: compare only" in shown


def test_missing_seeds_are_reported(tmp_path, undrawn):
    folder = chat_folder(tmp_path, seeds=(0, 1))
    with (folder / "resolved.yaml").open("a") as recipe:
        recipe.write("seeds: [0, 1, 2]\n")
    assert "asks for 1 more seed(s) (2)" in "".join(
        Page(build(folder).read_text(encoding="utf-8")).text
    )
    (folder / "resolved.yaml").write_text(
        (folder / "resolved.yaml").read_text().replace("[0, 1, 2]", "[0, 1]")
    )
    assert "more seed(s)" not in build(folder).read_text(encoding="utf-8")


def test_merged_study_shows_the_command_of_each_part(tmp_path, undrawn):
    folder = chat_folder(tmp_path)
    stamp = json.loads((folder / "environment.json").read_text())
    parts = [
        {
            "command": f"tarazu run recipe.yaml --method {name}",
            "device": {"name": "A"},
            "methods": [name],
        }
        for name in ("lora", "layers")
    ]
    (folder / "environment.json").write_text(json.dumps({**stamp, "parts": parts}))
    text = build(folder).read_text(encoding="utf-8")
    assert (
        all(part["command"] in text for part in parts)
        and "by its own command" in text
        and stamp["command"] not in text
    )


def test_invariant_shows_what_was_compared_and_the_reason_of_its_tolerance(tmp_path, undrawn):
    folder = chat_folder(tmp_path)
    found = json.loads((folder / "verify.json").read_text())
    found["methods"][0]["checks"][0] |= {
        "compared": "nats of 6 rows",
        "reason": "the device may add in another order",
    }
    (folder / "verify.json").write_text(json.dumps(found))
    page = Page(build(folder).read_text(encoding="utf-8"))
    told = " ".join(page.text)
    assert re.search(r"nats of 6 rows\s+the device may add in another order", told), told[
        told.find("nats of") :
    ][:300]


def test_methods_without_invariants_are_named(tmp_path, undrawn):
    folder = chat_folder(tmp_path)
    found = json.loads((folder / "verify.json").read_text()) | {"device": {"name": "H100"}}
    (folder / "verify.json").write_text(json.dumps(found))
    told = re.sub(r"\s+", " ", " ".join(Page(build(folder).read_text(encoding="utf-8")).text))
    assert (
        "on H100 1 invariants held" in told
        and "not tried at all: prompt_tuning , lora_high_rank and layers" in told
    ), told[told.find("invariants held") - 60 :][:300]
    (folder / "verify.json").unlink()
    assert "not tried for this study yet. To try them: tarazu verify DIR" in re.sub(
        r"\s+", " ", " ".join(Page(build(folder).read_text(encoding="utf-8")).text)
    )


def test_flops_per_token_are_compared_with_trained_parameters(tmp_path, undrawn):
    folder = chat_folder(tmp_path)
    for name, flops in (("lora", 0.9e9), ("layers", 1.35e9)):
        path = folder / name / "seed-0" / "ledger.json"
        path.write_text(
            json.dumps(
                json.loads(path.read_text())
                | {"flops_per_token": flops, "device_matmul_flops": 7.9e14}
            )
        )
    told = re.sub(r"\s+", " ", " ".join(Page(build(folder).read_text(encoding="utf-8")).text))
    assert (
        re.search(r"from 900 ۹۰۰ MFLOP|from 900 MFLOP", told)
        and "1.50 times as much" in told
        and "differ up to 6 times" in told
        and "790 TFLOP a second" in told
    )


def test_tensor_names_are_shown_once_where_all_seeds_changed_the_same(tmp_path, undrawn):
    folder = chat_folder(tmp_path, seeds=(0, 1))
    names = "Names of the tensors that changed"
    same = build(folder).read_text(encoding="utf-8")
    path = folder / "lora" / "seed-1" / "fingerprint.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"changed": ["another.weight"]}))
    other = build(folder).read_text(encoding="utf-8")
    assert (same.count(names), other.count(names)) == (4, 5) and "another.<wbr>weight" not in same


def test_judge_table_names_the_baseline_and_links_the_verdicts(tmp_path, undrawn):
    folder = chat_folder(tmp_path)
    found = json.loads((folder / "judge.json").read_text())
    (folder / "judge").mkdir()
    (folder / "judge" / "lora.jsonl").write_text("{}\n")
    for against, told in (
        ("base", "Win rate against the untouched model"),
        ("layers", "Win rate against layers"),
    ):
        (folder / "judge.json").write_text(json.dumps(found | {"against": against}))
        text = build(folder).read_text(encoding="utf-8")
        assert (
            told in re.sub(r"\s+", " ", " ".join(Page(text).text))
            and 'href="./judge/lora.jsonl"' in text
        )


def test_item_links_to_its_own_part(tmp_path, undrawn):
    """Not to the head of twenty screens: the proof, the curves, the troubles and the answers of the first method of its kind."""
    page = build(chat_folder(tmp_path)).read_text(encoding="utf-8")
    places = dict(re.findall(r'<li><a href="#([^"]+)"><b dir="ltr">(T[0-9.]+)</b>', page))
    expected = {
        "method-prompt_tuning-proof": "T2.3",
        "method-prompt_tuning-curves": "T2.5",
        "method-prompt_tuning-after-training": "T2.6",
        "method-lora-proof": "T3.3",
        "method-layers-proof": "T4.3",
    }
    assert expected.items() <= places.items() and all(
        f'id="{anchor}"' in page for anchor in expected
    )


def test_best_method_of_a_family_is_named_with_its_ties(tmp_path, undrawn):
    told = re.sub(
        r"\s+", " ", " ".join(Page(build(chat_folder(tmp_path)).read_text(encoding="utf-8")).text)
    )
    found = re.search(
        r"speak for (lora|lora_high_rank) .{0,60}? against (lora|lora_high_rank) .{0,80}?No difference was found between it and (lora|lora_high_rank)",
        told,
    )
    assert found and found[2] == found[3] != found[1]
