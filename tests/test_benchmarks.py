"""The benchmarks on small shapes: rows, peers, records and the table."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import common, generation, run, shapes, table  # noqa: E402
from benchmarks.peers import plain_loop  # noqa: E402

from tarazu.chat.model.batching import TokenizedRow, make_batch  # noqa: E402


def test_rows_have_the_lengths_and_labels_that_they_say():
    rows = shapes.rows(1500, seed=1, vocab_size=1000)
    lengths = np.array([len(row.ids) for row in rows])
    assert lengths.min() >= 48 and lengths.max() == 2048
    assert 420 < np.median(lengths) < 480 and 560 < lengths.mean() < 630
    assert abs(sum(row.supervised.sum() for row in rows) / lengths.sum() - 0.6) < 0.01
    assert all(row.supervised[-1] and not row.supervised[0] for row in rows)
    assert (
        min(row.ids.min() for row in rows) >= shapes.NUM_SPECIAL
        and max(row.ids.max() for row in rows) < 1000
    )
    again = shapes.rows(3, seed=1, vocab_size=1000)
    assert all((a.ids == b.ids).all() for a, b in zip(again, rows, strict=False))


def test_a_long_row_is_cut_and_keeps_an_answer():
    whole, cut = (shapes.rows(200, max_length=length) for length in (2048, 128))
    for a, b in zip(whole, cut, strict=True):
        assert (
            len(b.ids) == min(len(a.ids), 128)
            and (a.ids[:128] == b.ids).all()
            and abs(b.supervised.mean() - 0.6) < 0.02
        )


def test_our_labels_and_the_peers_are_the_same_tokens():
    rows = shapes.rows(4, vocab_size=512, max_length=200)
    ours = make_batch([[TokenizedRow(*row)] for row in rows])
    peers = plain_loop.padded(rows, "cpu")["labels"][:, 1:]
    assert ours.labels.tolist() == peers[peers != -100].tolist()
    columns = shapes.labelled(rows)["labels"]
    assert ours.labels.tolist() == [
        token for line in columns for token in line[1:] if token != -100
    ]


@pytest.mark.parametrize(("shape", "billions"), [("gemma-2-2b", 2.614), ("llama-3.2-3b", 3.213)])
def test_the_shapes_have_the_published_sizes(shape, billions):
    model = shapes.build(shape, "meta", "eager", torch.bfloat16)
    assert round(shapes.parameters(model) / 1e9, 3) == billions
    assert model.config.tie_word_embeddings and model.dtype == torch.bfloat16


def test_the_plain_loop_trains_and_leaves_a_record(tmp_path):
    out = tmp_path / "record.json"
    command = [
        sys.executable,
        "-m",
        "benchmarks.peers.plain_loop",
        "--shape",
        "tiny-llama",
        "--batch",
        "2",
        "--max-length",
        "128",
    ]
    command += [
        "--warm",
        "1",
        "--steps",
        "3",
        "--attention",
        "sdpa",
        "--learning-rate",
        "0.01",
        "--out",
        str(out),
    ]
    subprocess.run(
        command,
        check=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
    )
    one = json.loads(out.read_text())
    assert (
        one["table"] == "train"
        and one["group"] == "lora"
        and one["shape"] == "tiny-llama"
        and one["stopped"] is None
    )
    assert len(one["loss"]) == 4 and one["loss"][0] == pytest.approx(np.log(512), abs=0.2)
    speed = one["tokens_per_second"]
    assert 0 < speed["low"] <= speed["median"] <= speed["high"] and 0 < one["bound_share"] < 1
    assert (
        one["first_step_seconds"] > 0
        and one["versions"]["torch"] == torch.__version__
        and one["device"]
    )


@pytest.mark.parametrize("shape", ["tiny-gemma2", "tiny-llama"])
def test_generation_is_compared_token_by_token(shape):
    model = shapes.build(shape, "cpu", "eager" if "gemma" in shape else "sdpa").eval()
    prompts = [
        row.ids[~row.supervised].tolist() for row in shapes.rows(5, vocab_size=512, max_length=160)
    ]
    own, peer = generation.measure(
        generation.Job(shape, model, prompts, set(), max_new_tokens=6, batch_rows=4), repeats=2
    )
    assert own["equal_answers"] == 1 and own["tokens"] == peer["tokens"] == [6] * 5
    assert own["ratio"]["median"] > 0 and own["who"] == "tarazu"


def test_turns_alternate():
    order: list[str] = []
    seconds = common.alternate({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 3)
    assert "".join(order) == "abbaab" and [len(times) for times in seconds.values()] == [3, 3]


def a_record(who: str, rate: float | None, **more) -> dict:
    speed = rate and {"median": rate, "low": rate - 1, "high": rate + 1}
    return common.record(
        "train",
        who,
        "packed",
        "tiny-llama",
        group="lora",
        **{"tokens_per_second": speed, "peak_gib": 2.0, **more},
    )


def test_the_table_compares_with_the_fastest_peer(tmp_path):
    common.write(
        tmp_path / "a.json", a_record("tarazu", 300.0, bound_share=0.5, first_step_seconds=12.0)
    )
    common.write(tmp_path / "b.json", [a_record("slow peer", 100.0), a_record("fast peer", 120.0)])
    common.write(tmp_path / "c.json", a_record("large peer", None, stopped="out of memory"))
    text = table.markdown(common.read(tmp_path))
    lines = [line for line in text.splitlines() if line.startswith("| tiny")]
    assert (
        "**2.50**" in lines[0]
        and "300 (299 to 301)" in lines[0]
        and "50%" in lines[0]
        and "12 s" in lines[0]
    )
    assert [line.split("|")[2].strip() for line in lines] == [
        "**tarazu**",
        "fast peer",
        "slow peer",
        "large peer",
    ]
    assert "out of memory" in lines[3] and common.device_name() in text


def test_a_newer_record_takes_the_place_of_the_older():
    old, new = (
        a_record("tarazu", 10.0) | {"date": "2026-01-01T00:00:00+00:00"},
        a_record("tarazu", 20.0),
    )
    assert [one["tokens_per_second"]["median"] for one in table.newest([new, old])] == [20.0]


def test_the_table_goes_between_its_marks(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n")
    table.insert(page, "new\n")
    assert page.read_text() == f"before\n{table.BEGIN}\nnew\n{table.END}\nafter\n"
    page.write_text("no marks")
    with pytest.raises(SystemExit, match="must hold"):
        table.insert(page, "new\n")


def test_the_page_of_speeds_has_the_marks_of_the_table():
    content = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    assert content.count(table.BEGIN) == content.count(table.END) == 1


def test_runs_are_pooled_to_their_median_and_widest_spread():
    first, second, third = (
        a_record("tarazu", 30.0, peak_gib=1.0),
        a_record("tarazu", 10.0, peak_gib=3.0),
        a_record("tarazu", 20.0),
    )
    one = run.pooled([first, second, third])
    assert one["tokens_per_second"] == {"median": 20.0, "low": 9.0, "high": 31.0}
    assert one["peak_gib"] == 3.0 and one["runs"] == [10.0, 20.0, 30.0]


@pytest.mark.parametrize("gpu", [False, True])
def test_every_comparison_names_scripts_and_options_that_exist(gpu):
    for one in run.comparisons(gpu):
        for module, *options in one.commands:
            source = (ROOT / (module.replace(".", "/") + ".py")).read_text(encoding="utf-8")
            assert '"--out"' in source
            for option in options:
                assert not option.startswith("--") or f'"{option}"' in source
