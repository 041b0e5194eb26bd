"""`tarazu verify` on a small chat model: everything holds, and each invariant fails when just that is broken."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from chat import small
from invariants.persian import unknown_to_the_report

from tarazu import cli
from tarazu.chat import invariants
from tarazu.chat.evaluation import generation
from tarazu.chat.model import attention_mask
from tarazu.chat.model.batching import PAD
from tarazu.chat.task import Chat
from tarazu.engine.invariants.fixture import CheckFixture
from tarazu.engine.invariants.perturbations import shake
from tarazu.recipe.schema import load
from tarazu.storage.run_folder import StudyDir

PADDED, PACKED, FUTURE, LEFT, CACHED = (
    "padded = alone",
    "packed = alone",
    "no token sees a later one",
    "left-padded in a batch = alone",
    "cached = full forward",
)
METHODS = ("prefix_tuning", "prompt_tuning", "lora")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def recipe_path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verify")
    model = small.save_model(folder / "model")
    data = {
        "source": "samples:chat_fa.jsonl",
        "split": {"train": 0.8, "validation": 0.1, "test": 0.1},
        "max_length": 90,
    }
    return small.recipe(
        folder / "recipe.yaml",
        model,
        data=data,
        methods={name: small.METHODS[name] for name in METHODS},
    )


@pytest.fixture(scope="module")
def fixtures(recipe_path, tmp_path_factory):
    recipe, folder = load(recipe_path), tmp_path_factory.mktemp("fixture")
    data, out = Chat().prepare(recipe, StudyDir(folder), CPU), {}
    for name in METHODS:
        trainable = Chat().build(recipe, name, data, 0, CPU)
        shake(trainable)
        trainable.module.eval()
        out[name] = CheckFixture(
            data,
            Chat.invariants.subset_rows(data, 4),
            recipe,
            name,
            trainable,
            folder,
            CPU,
            0,
        )
    return out


def failing(fixture: CheckFixture) -> set[str]:
    return {found.name for found in invariants.checks(fixture) if found.verdict != "ok"}


def visible(same=lambda q, k: (q == k) & (q != PAD), later=0):
    """The rule of attention with one part of it broken."""

    def broken(q_segments, k_segments, q_positions, k_positions, window):
        seen = same(q_segments[:, :, None], k_segments[:, None, :]) | (
            k_segments[:, None, :] == attention_mask.SHARED
        )
        return (
            seen & (k_positions[:, None, :] <= q_positions[:, :, None] + later)
            | torch.eye(k_segments.shape[1], dtype=torch.bool)[-q_segments.shape[1] :]
        )

    return broken


BREAKS = {
    "rows of a packed line see each other": (
        "visible",
        visible(lambda q, k: (k != PAD) & (q != PAD)),
        {PACKED},
    ),
    "padding is seen": ("visible", visible(lambda q, k: (q == k) | (k == PAD)), {PADDED, LEFT}),
    "one word ahead is seen": ("visible", visible(later=1), {FUTURE, CACHED}),
    "a cached word stands one place too far": ("next_position", None, {CACHED}),
    "a finished answer's cache stays": ("select", None, {LEFT}),
}


@pytest.mark.parametrize("name", METHODS)
def test_everything_holds(name, fixtures):
    assert failing(fixtures[name]) == set()


@pytest.mark.parametrize("what", BREAKS)
def test_each_check_can_fail(what, fixtures, monkeypatch):
    place, made, broken = BREAKS[what]
    if place == "visible":
        monkeypatch.setattr(attention_mask, "visibility_mask", made)
    elif place == "next_position":
        right = generation.next_position

        def wrong(batch, tokens):
            after = right(batch, tokens)
            return dataclasses.replace(after, positions=after.positions + 1)

        monkeypatch.setattr(generation, "next_position", wrong)
        monkeypatch.setattr(invariants, "next_position", wrong)
    else:
        right = generation.KVState.select
        monkeypatch.setattr(
            generation.KVState, "select", lambda past, lines: right(past, torch.arange(len(lines)))
        )
    found = failing(fixtures["lora"])
    assert broken <= found, f"not noticed: {broken - found}"
    assert found == broken or place == "visible"


def cli_words(recipe_path, methods: str) -> list[str]:
    return ["tarazu", "verify", str(recipe_path), "--set", f"methods={methods}"]


def test_the_command_writes_what_it_found(recipe_path, tmp_path, capsys, monkeypatch):
    out = tmp_path / "verify.json"
    monkeypatch.setattr(
        "sys.argv",
        [
            "tarazu",
            "verify",
            str(recipe_path),
            "--set",
            "methods={base: {}, lora: {rank: 2, dropout: 0.1}}",
            "--out",
            str(out),
        ],
    )
    cli.main()
    said = capsys.readouterr()
    assert "packed = alone" in said.out
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["verdict"] == "ok" and found["counts"] == {
        "ok": 14,
        "failed": 0,
        "not applicable": 4,
    }
    assert found["waiting"] == [] and all(
        check["seconds"] >= 0 for method in found["methods"] for check in method["checks"]
    )
    assert (
        unknown_to_the_report([check for method in found["methods"] for check in method["checks"]])
        == []
    )
    told = said.err
    assert (
        told.index("quick checks, lora (2 of 2)") < told.index("checks that train, lora (2 of 2)")
        and "left of this round" in told
    )
    with_base = [
        *cli_words(recipe_path, "{base: {}, lora: {rank: 2}}"),
        "--method",
        "base",
        "--out",
        str(out),
    ]
    monkeypatch.setattr("sys.argv", with_base)
    cli.main()  # tries base alone, and keeps what is known of lora
    again = json.loads(out.read_text(encoding="utf-8"))
    assert [m["method"] for m in again["methods"]] == ["lora", "base"] and again["methods"][
        0
    ] == found["methods"][1]
    out.write_text(json.dumps({**found, "torch": "0.1"}), encoding="utf-8")
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 2 and "tried under another torch" in capsys.readouterr().err
    monkeypatch.setattr(
        attention_mask, "visibility_mask", BREAKS["rows of a packed line see each other"][1]
    )
    monkeypatch.setattr(
        "sys.argv", ["tarazu", "verify", str(recipe_path), "--set", "methods={base: {}}"]
    )
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 1 and "base: packed = alone" in capsys.readouterr().err
