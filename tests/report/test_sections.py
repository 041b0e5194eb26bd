"""What the sections of the report say of studies with special features."""

from __future__ import annotations

import json
import re

from caption_folders import captions_folder
from folders import chat_folder, update, write
from pages import built_text, says

from tarazu.report.build import build
from tarazu.report.render.bilingual import translate


def test_null_numbers_are_shown_as_not_measured(tmp_path, undrawn):
    folder = chat_folder(tmp_path)
    update(
        folder / "lora/seed-0/metrics.json",
        loss=None,
        row_losses=None,
        perplexity=None,
        generation={"test": {"chrf": None}},
        abilities=None,
    )
    assert says(built_text(folder), "common.unknown")


def test_failed_run_is_reported(tmp_path, undrawn):
    folder = chat_folder(tmp_path)
    update(folder / "lora/seed-0/run.json", status="failed", error="out of memory at step 7")
    for name in ("metrics.json", "fingerprint.json", "ledger.json", "samples.jsonl"):
        (folder / f"lora/seed-0/{name}").unlink()
    text = built_text(folder)
    assert "out of memory at step 7" in text
    assert says(text, "proof.missing") and says(text, "overview.failed", method="lora", seed=0)


def test_failed_proof_is_an_alarm(tmp_path, undrawn):
    folder = chat_folder(tmp_path)
    changed = ["model.embed.weight"]
    proof = folder / "lora/seed-0/fingerprint.json"
    update(proof, verdict="failed", unexpectedly_changed=changed)
    text = built_text(folder)
    assert "model.embed.weight" in text.replace(" ", "") and says(text, "proof.failed", tensors=240)


def test_image_outside_the_folder_is_not_shown(tmp_path, undrawn):
    folder = captions_folder(tmp_path / "study")
    (tmp_path / "secret.jpg").write_bytes((folder / "images/drawn-000.jpg").read_bytes())
    path = folder / "transformer/seed-0/samples.jsonl"
    samples = [json.loads(line) for line in path.read_text().splitlines()]
    write(path, [{**sample, "image": "../secret.jpg"} for sample in samples])
    assert says(built_text(folder), "caption_data.no_image")


def test_search_reports_its_cost_and_extended_range(tmp_path, undrawn):
    folder = chat_folder(tmp_path)
    search = json.loads((folder / "lora/search.json").read_text())
    write(folder / "layers/search.json", search)
    assert not says(built_text(folder), "caveat.search_uneven")
    extended = {
        "settings": {"learning_rate": 0.03},
        "rounds": [{"tokens": 5000, "loss": 2.5}],
        "extended": True,
    }
    update(
        folder / "layers/search.json",
        tokens=20_000,
        tokens_extended=5_000,
        candidates=[*search["candidates"], extended],
    )
    text = built_text(folder)
    assert says(text, "search.extended", rates="0.03", tokens="5,000")
    assert says(text, "caveat.search_uneven", min="15,000", max="20,000")


def test_search_reports_the_schedule_of_its_trials(tmp_path, undrawn):
    """Old folders have no `schedule`: their trials had a constant learning rate."""
    folder = chat_folder(tmp_path)
    text = built_text(folder)
    assert says(text, "search.continued_trials") and not says(text, "search.full_schedule_trials")
    update(folder / "lora/search.json", schedule="cosine")
    text = built_text(folder)
    assert says(text, "search.full_schedule_trials", schedule="cosine")
    assert says(text, "search.schedule_reason")
    update(folder / "lora/search.json", schedule="constant")
    assert not says(built_text(folder), "search.schedule_reason")


def test_tokenizer_of_the_metrics_is_named(tmp_path, undrawn):
    folder = captions_folder(tmp_path)
    text = built_text(folder)
    assert says(text, "bleu.tokenizer", names="ptb_like") and says(text, "bleu.tokenizer_ptb_like")
    for path in folder.glob("*/seed-0/metrics.json"):
        path.write_text(path.read_text().replace("ptb_like", path.parent.parent.name))
    text = built_text(folder)
    names = "show_and_tell,show_attend_tellandtransformer"
    assert names in text.replace(" ", "") and says(text, "bleu.tokenizer_other")


def test_missing_seeds_are_reported(tmp_path, undrawn):
    folder = chat_folder(tmp_path, seeds=(0, 1))
    recipe = folder / "resolved.yaml"
    settings = recipe.read_text()
    recipe.write_text(settings + "seeds: [0, 1, 2]\n")
    assert says(built_text(folder), "caveat.missing_seeds", n=1, seeds=2)
    recipe.write_text(settings + "seeds: [0, 1]\n")
    assert not says(built_text(folder), "caveat.missing_seeds")


def test_merged_study_shows_the_command_of_each_part(tmp_path, undrawn):
    folder = chat_folder(tmp_path)
    command = json.loads((folder / "environment.json").read_text())["command"]
    parts = [
        {
            "command": f"tarazu run recipe.yaml --method {name}",
            "device": {"name": "A"},
            "methods": [name],
        }
        for name in ("lora", "layers")
    ]
    update(folder / "environment.json", parts=parts)
    text = built_text(folder)
    assert all(part["command"] in text for part in parts) and command not in text
    assert says(text, "reproduction.repeat_parts")


def test_invariant_shows_what_was_compared_and_the_reason_of_its_tolerance(tmp_path, undrawn):
    folder = chat_folder(tmp_path)
    verify = json.loads((folder / "verify.json").read_text())
    reason = "the device may add in another order"
    verify["methods"][0]["checks"][0] |= {"compared": "loss of 6 rows", "reason": reason}
    write(folder / "verify.json", verify)
    assert f"loss of 6 rows {reason}" in built_text(folder)


def test_methods_without_invariants_are_named(tmp_path, undrawn):
    folder = chat_folder(tmp_path)
    update(folder / "verify.json", device={"name": "H100"})
    text = built_text(folder)
    assert says(text, "verify.counts", device="H100", ok=1)
    assert "prompt_tuning , lora_high_rank and layers" in text and says(text, "verify.unchecked")
    (folder / "verify.json").unlink()
    assert says(built_text(folder), "verify.none", command="tarazu verify DIR")


def test_flops_per_token_are_compared_with_trained_parameters(tmp_path, undrawn):
    folder = chat_folder(tmp_path)
    for name, flops in (("lora", 0.9e9), ("layers", 1.35e9)):
        ledger = folder / name / "seed-0/ledger.json"
        update(ledger, flops_per_token=flops, device_matmul_flops=7.9e14)
    text = built_text(folder)
    assert "900 MFLOP" in text and "790 TFLOP" in text
    assert says(text, "compare.flops", min_name="lora", max_name="layers", times="1.50", trained=6)


def test_tensor_names_are_shown_once_where_all_seeds_changed_the_same(tmp_path, undrawn):
    folder = chat_folder(tmp_path, seeds=(0, 1))
    title = translate("proof.names").plain("en")
    same = build(folder).read_text(encoding="utf-8")
    update(folder / "lora/seed-1/fingerprint.json", changed=["another.weight"])
    other = build(folder).read_text(encoding="utf-8")
    assert (same.count(title), other.count(title)) == (4, 5) and "another.<wbr>weight" not in same


def test_judge_table_names_the_baseline_and_links_the_verdicts(tmp_path, undrawn):
    folder = chat_folder(tmp_path)
    write(folder / "judge/lora.jsonl", [{}])
    base = translate("judge.base").plain("en")
    for against, name in (("base", base), ("layers", "layers")):
        update(folder / "judge.json", against=against)
        assert translate("judge.table", against=name).plain("en") in built_text(folder)
        assert 'href="./judge/lora.jsonl"' in build(folder).read_text(encoding="utf-8")


def test_item_links_to_its_own_part(tmp_path, undrawn):
    """An item on a family of methods links to a part of the family's first method."""
    page = build(chat_folder(tmp_path)).read_text(encoding="utf-8")
    numbers = dict(re.findall(r'<li><a href="#([^"]+)"><b dir="ltr">(T[0-9.]+)</b>', page))
    expected = {
        "method-prompt_tuning-proof": "T2.3",
        "method-prompt_tuning-curves": "T2.5",
        "method-prompt_tuning-after-training": "T2.6",
        "method-lora-proof": "T3.3",
        "method-layers-proof": "T4.3",
    }
    assert expected.items() <= numbers.items()
    assert all(f'id="{anchor}"' in page for anchor in expected)


def test_methods_of_a_family_that_tie_are_named(tmp_path, undrawn):
    """Of `lora` and `lora_high_rank`, one is the best of its family and the other ties with it."""
    text = built_text(chat_folder(tmp_path))
    tied = [name for name in ("lora", "lora_high_rank") if says(text, "family.tied", methods=name)]
    best = {"lora": "lora_high_rank", "lora_high_rank": "lora"}[tied[-1]]
    assert re.search(rf"\b{best} \d\.\d+[^.]*\b{tied[-1]} \d\.\d+", text)
