"""`tarazu verify` on a small chat model: all checks pass, and each fails when broken."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from chat import small
from invariants.translations import untranslated

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

PADDED, PACKED, CAUSAL, LEFT_PADDED, CACHED = (
    "padded = alone",
    "packed = alone",
    "no token sees a later one",
    "left-padded in a batch = alone",
    "cached = full forward",
)
METHODS = ("prefix_tuning", "prompt_tuning", "lora")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def recipe_path(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("verify")
    model = small.save_model(folder / "model")
    data = {
        "source": "samples:chat_fa.jsonl",
        "split": {"train": 0.8, "validation": 0.1, "test": 0.1},
        "max_length": 90,
    }
    methods = {name: small.METHODS[name] for name in METHODS}
    return small.recipe(folder / "recipe.yaml", model, data=data, methods=methods)


@pytest.fixture(scope="module")
def fixtures(recipe_path, tmp_path_factory) -> dict[str, CheckFixture]:
    """A fixture for each method."""
    recipe, folder, task = load(recipe_path), tmp_path_factory.mktemp("fixture"), Chat()
    data = task.prepare(recipe, StudyDir(folder), CPU)
    rows = task.invariants.subset_rows(data, 4)
    fixtures = {}
    for name in METHODS:
        model = task.build(recipe, name, data, 0, CPU)
        shake(model)
        model.module.eval()
        fixtures[name] = CheckFixture(data, rows, recipe, name, model, folder, CPU, 0)
    return fixtures


def failed_checks(fixture: CheckFixture) -> set[str]:
    results = Chat().invariants.checks(fixture)
    return {result.name for result in results if result.verdict != "ok"}


def broken_visibility(
    same_row: Callable = lambda q, k: (q == k) & (q != PAD), lookahead: int = 0
) -> Callable:
    """The rule of attention with one part of it broken.

    Args:
        same_row: (queries' segments, keys' segments) -> whether they may see each other.
        lookahead: later positions that are visible.
    """

    def visibility_mask(q_segments, k_segments, q_positions, k_positions, window):
        q_segments, k_segments = q_segments[:, :, None], k_segments[:, None, :]
        visible = same_row(q_segments, k_segments) | (k_segments == attention_mask.SHARED)
        visible &= k_positions[:, None, :] <= q_positions[:, :, None] + lookahead
        queries, keys = visible.shape[1:]
        return visible | torch.eye(keys, dtype=torch.bool)[-queries:]

    return visibility_mask


SEES_OTHER_ROWS = broken_visibility(lambda q, k: (k != PAD) & (q != PAD))
BROKEN_MASKS = {
    "rows of a packed line see each other": (SEES_OTHER_ROWS, {PACKED}),
    "padding is seen": (
        broken_visibility(lambda q, k: (q == k) | (k == PAD)),
        {PADDED, LEFT_PADDED},
    ),
    "one later token is seen": (broken_visibility(lookahead=1), {CAUSAL, CACHED}),
}


@pytest.mark.parametrize("name", METHODS)
def test_all_checks_pass(name, fixtures):
    assert failed_checks(fixtures[name]) == set()


@pytest.mark.parametrize("fault", BROKEN_MASKS)
def test_broken_mask_fails(fault, fixtures, monkeypatch):
    mask, expected = BROKEN_MASKS[fault]
    monkeypatch.setattr(attention_mask, "visibility_mask", mask)
    assert expected <= failed_checks(fixtures["lora"])


def test_wrong_position_of_a_cached_token_fails(fixtures, monkeypatch):
    next_position = generation.next_position

    def one_too_far(batch, tokens):
        batch = next_position(batch, tokens)
        return dataclasses.replace(batch, positions=batch.positions + 1)

    monkeypatch.setattr(generation, "next_position", one_too_far)
    monkeypatch.setattr(invariants, "next_position", one_too_far)
    assert failed_checks(fixtures["lora"]) == {CACHED}


def test_cache_of_a_finished_answer_that_stays_fails(fixtures, monkeypatch):
    select = generation.KVState.select

    def select_first(past, lines):
        return select(past, torch.arange(len(lines)))

    monkeypatch.setattr(generation.KVState, "select", select_first)
    assert failed_checks(fixtures["lora"]) == {LEFT_PADDED}


@pytest.fixture
def verify(recipe_path, monkeypatch) -> Iterator[Callable]:
    """Run the command on methods of the recipe, with further arguments."""

    def run(methods: str, *arguments: str) -> None:
        command = ["tarazu", "verify", str(recipe_path), "--set", f"methods={methods}"]
        monkeypatch.setattr("sys.argv", [*command, *arguments])
        cli.main()

    return run


def test_command_writes_its_results_and_keeps_those_of_other_methods(verify, tmp_path, capsys):
    path = tmp_path / "verify.json"
    verify("{base: {}, lora: {rank: 2, dropout: 0.1}}", "--out", str(path))
    output = capsys.readouterr()
    assert PACKED in output.out
    forward, training = (
        f"{stage}, lora (2 of 2)" for stage in ("quick checks", "checks that train")
    )
    assert output.err.index(forward) < output.err.index(training)
    assert "left of this round" in output.err
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["verdict"] == "ok" and content["waiting"] == []
    assert content["counts"] == {"ok": 14, "failed": 0, "not applicable": 4}
    checks = [check for method in content["methods"] for check in method["checks"]]
    assert all(check["seconds"] >= 0 for check in checks) and untranslated(checks) == []

    base_only = ("{base: {}, lora: {rank: 2}}", "--method", "base", "--out", str(path))
    verify(*base_only)
    updated = json.loads(path.read_text(encoding="utf-8"))
    assert [method["method"] for method in updated["methods"]] == ["lora", "base"]
    assert updated["methods"][0] == content["methods"][1]

    path.write_text(json.dumps({**content, "torch": "0.1"}), encoding="utf-8")
    with pytest.raises(SystemExit) as exit_info:
        verify(*base_only)
    assert exit_info.value.code == 2 and "under another torch" in capsys.readouterr().err


def test_command_fails_when_a_check_fails(verify, monkeypatch, capsys):
    monkeypatch.setattr(attention_mask, "visibility_mask", SEES_OTHER_ROWS)
    with pytest.raises(SystemExit) as exit_info:
        verify("{base: {}}")
    assert exit_info.value.code == 1 and f"base: {PACKED}" in capsys.readouterr().err
