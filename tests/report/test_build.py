"""The report as a file: offline, sealed, small, whole in both languages, and there even when the study is not."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pytest
from caption_folders import captions_folder
from folders import chat_folder

from tarazu.errors import UserError
from tarazu.report.build import build

VOID = {"meta", "input", "br", "wbr", "img", "link", "hr"}


class Page(HTMLParser):
    """What a browser would make of the page: elements, attributes, and the text of scripts."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.elements, self.open, self.scripts, self.ids, self.text, self.classes = (
            [],
            [],
            [],
            [],
            [],
            [],
        )
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.elements.append((tag, attributes))
        self.ids += [attributes["id"]] if "id" in attributes else []
        if tag not in VOID:
            self.open.append(tag)
            self.classes.append(attributes.get("class"))
        if tag == "script":
            self.scripts.append([attributes, ""])

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, (
            f"</{tag}> closes <{self.open[-1] if self.open else None}>"
        )
        self.open.pop()
        self.classes.pop()

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts[-1][1] += data
        if "persian" not in self.classes:  # not the second format of a figure, in Persian digits
            self.text.append(data)

    def named(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(params=["chat", "captions", "hostile chat", "hostile captions"])
def made(request, reports):
    folder, path = reports[request.param]
    return folder, path.read_text(encoding="utf-8"), request.param


def test_nothing_comes_from_outside_and_nothing_else_runs(made):
    folder, text, _ = made
    page = Page(text)
    assert page.open == []
    assert len(text.encode()) < 3_000_000
    policy = next(
        a["content"] for a in page.named("meta") if a.get("http-equiv") == "Content-Security-Policy"
    )
    running = [
        content
        for attributes, content in page.scripts
        if attributes.get("type") != "application/json"
    ]
    assert len(running) == 1
    digest = base64.b64encode(hashlib.sha256(running[0].encode()).digest()).decode()
    assert (
        policy.startswith("default-src 'none'")
        and f"'sha256-{digest}'" in policy
        and "unsafe" not in policy
    )
    allowed = {"html", "head", "meta", "title", "style", "body", "script"}
    for tag, attributes in page.elements:
        assert not [a for a in attributes if a.startswith("on")], (tag, attributes)
        assert tag in allowed or tag not in (
            "iframe",
            "object",
            "embed",
            "base",
            "format",
            "link",
        ), tag
        assert "style" not in attributes, (tag, attributes)
        link = attributes.get("href") or attributes.get("src") or ""
        assert re.match(r"(#|\./|figures/|https://arxiv\.org/|data:image/jpeg;base64,|$)", link), (
            link
        )


def test_every_anchor_leads_somewhere_and_ids_are_unique(made):
    page = Page(made[1])
    assert len(page.ids) == len(set(page.ids))
    missing = {a["href"][1:] for a in page.named("a") if a.get("href", "").startswith("#")} - set(
        page.ids
    )
    assert not missing


def test_links_to_files_lead_to_files(made):
    folder, text, kind = made
    links = {
        a["href"] for a in Page(text).named("a") if a.get("href", "").startswith(("./", "figures/"))
    }
    assert len(links) > 20
    assert not [
        link for link in links if not (folder / link).exists() and "vocabulary.json" not in link
    ]


def test_figures_are_files_and_well_formed(made):
    folder, text, _ = made
    drawings = sorted((folder / "figures").glob("*.svg"))
    assert len(drawings) >= 20
    for path in drawings:
        assert {
            node.tag.rpartition("}")[2]
            for node in ET.fromstring(path.read_text(encoding="utf-8")).iter()
        } <= {
            "svg",
            "g",
            "path",
            "rect",
            "line",
            "text",
            "tspan",
            "defs",
            "clipPath",
            "title",
        }
        assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_hostile_text_is_text(made):
    _, text, kind = made
    page = Page(text)
    assert (
        len(page.named("script"))
        == len([s for s in page.scripts if s[0].get("type") == "application/json"]) + 1
    )
    assert not [a for a in page.named("img") if not a["src"].startswith("data:image/jpeg;base64,")]
    assert not re.search("[\u202a-\u202e\x00-\x08]", text)
    shown = "".join(page.text)
    if kind.startswith("hostile"):
        assert "document.title='owned'" in shown and "{{ 7*7 }}" in shown  # it is there, to be read
    if kind == "hostile chat":
        assert "of 20,000 characters" in shown and "(empty answer)" in shown


def test_both_languages_are_whole(made):
    page = Page(made[1])
    sides = {
        language: sum(a.get("lang") == language for _, a in page.elements)
        for language in ("fa", "en")
    }
    assert min(sides.values()) > 300
    spans = {
        language: sum(a.get("class") == language for _, a in page.elements)
        for language in ("fa", "en")
    }
    assert spans["fa"] == spans["en"] > 300


def test_it_opens_in_the_language_of_the_data(tmp_path, undrawn):
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


def test_null_numbers_are_said_to_be_not_measured(tmp_path, undrawn):
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


def test_a_failed_run_says_so(tmp_path, undrawn):
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


def test_a_failed_proof_is_an_alarm(tmp_path, undrawn):
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


def test_an_empty_folder_still_gives_a_report(tmp_path, undrawn):
    assert "nothing can be recommended" in build(tmp_path).read_text(encoding="utf-8")
    with pytest.raises(UserError, match="no such run folder"):
        build(tmp_path / "nowhere")


def test_a_picture_outside_the_folder_is_not_shown(tmp_path, undrawn):
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


def test_a_search_tells_what_it_took_and_what_lay_beyond(tmp_path, undrawn):
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


def test_a_search_tells_how_its_trials_were_trained(tmp_path, undrawn):
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


def test_the_scorers_tokenizer_is_named(tmp_path, undrawn):
    folder = captions_folder(tmp_path)
    shown = "".join(Page(build(folder).read_text(encoding="utf-8")).text)
    assert "tokenizer is ptb_like: lower case" in shown and "واژه‌برِ سنجه‌ها ptb_like است" in shown
    for path in folder.glob("*/seed-0/metrics.json"):
        path.write_text(path.read_text().replace("ptb_like", path.parent.parent.name))
    shown = "".join(Page(build(folder).read_text(encoding="utf-8")).text)
    assert "tokenizer is show_and_tell, show_attend_tell and transformer: compare only" in shown


def test_the_report_needs_no_torch():
    probe = "import sys; import tarazu.report.build, tarazu.report.sections.chat, tarazu.report.sections.captions; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", probe], check=False).returncode == 0


def test_long_answers_make_room_for_each_other(tmp_path, undrawn, monkeypatch):
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


def test_a_large_study_shows_a_part_and_names_the_files(tmp_path, undrawn):
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


def test_a_study_short_of_seeds_says_so(tmp_path, undrawn):
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


def test_every_part_of_a_gathered_study_has_its_command(tmp_path, undrawn):
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


def test_an_invariant_says_what_was_compared_and_why_so_much_may_differ(tmp_path, undrawn):
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


def test_methods_that_no_invariant_was_tried_on_are_named(tmp_path, undrawn):
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


def test_computing_per_token_is_told_beside_how_much_is_trained(tmp_path, undrawn):
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


def test_tensors_are_named_once_where_every_seed_changed_the_same(tmp_path, undrawn):
    folder = chat_folder(tmp_path, seeds=(0, 1))
    names = "Names of the tensors that changed"
    same = build(folder).read_text(encoding="utf-8")
    path = folder / "lora" / "seed-1" / "fingerprint.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"changed": ["another.weight"]}))
    other = build(folder).read_text(encoding="utf-8")
    assert (same.count(names), other.count(names)) == (4, 5) and "another.<wbr>weight" not in same


def test_a_large_page_is_filled_with_answers(tmp_path, undrawn, monkeypatch):
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


def test_the_judge_table_names_what_the_answers_stood_beside_and_its_verdicts(tmp_path, undrawn):
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


def test_an_item_leads_to_its_own_part(tmp_path, undrawn):
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


def test_which_method_of_a_family_the_numbers_speak_for(tmp_path, undrawn):
    told = re.sub(
        r"\s+", " ", " ".join(Page(build(chat_folder(tmp_path)).read_text(encoding="utf-8")).text)
    )
    found = re.search(
        r"speak for (lora|lora_high_rank) .{0,60}? against (lora|lora_high_rank) .{0,80}?No difference was found between it and (lora|lora_high_rank)",
        told,
    )
    assert found and found[2] == found[3] != found[1]
