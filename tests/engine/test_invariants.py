"""The checks of training hold on a sound task, and each of them fails when just that is broken."""

from __future__ import annotations

import contextlib

import pytest
import torch
from engine.toy_task import CPU, Toy, ToyData

from tarazu.engine import optimizer
from tarazu.engine.invariants.checks import shared_checks
from tarazu.engine.invariants.fixture import CheckFixture, compare_to_tolerance
from tarazu.engine.invariants.perturbations import embeddings_perturbed, shake, without_dropout
from tarazu.engine.subset_task import SubsetTask
from tarazu.engine.trainable import LossSum
from tarazu.recipe.schema import Budget, Method, Recipe

GRADIENT, TENSORS, RESUMED, LOADED = (
    "gradient independent of micro-batches",
    "only trainable tensors change",
    "resumed = uninterrupted",
    "saved = loaded",
)


def verdicts(task: Toy, folder, deterministic=lambda model: contextlib.nullcontext()) -> dict[str, str]:
    recipe = Recipe(task="toy", budget=Budget(epochs=1), methods={"toy": {}}).model_copy(
        update={"methods": {"toy": Method(kind="toy")}}
    )
    model = task.build(frozen=True)
    shake(model)
    fixture = CheckFixture(
        SubsetTask(task, ToyData(), [0, 3, 5, 8, 9, 11]), recipe, "toy", model, folder, CPU, 0
    )
    return {
        found.name: found.verdict
        for found in shared_checks(fixture, lambda: task.build(frozen=True), deterministic)
    }


class Averaging(Toy):
    """The mean over a batch's tokens: what a loss must not be under accumulation."""

    def loss(self, model, batch):
        found = super().loss(model, batch)
        return LossSum(found.total / found.count, found.count)


class Leaking(Toy):
    """Moves a frozen tensor."""

    def loss(self, model, batch):
        if model.module.training:
            model.module[0].weight.data[0, 0] += 1e-3
        return super().loss(model, batch)


class Forgetful(Toy):
    """Saves rounded weights."""

    def weights(self, model):
        return {name: t.bfloat16().float() for name, t in super().weights(model).items()}


def failing(found: dict[str, str]) -> set[str]:
    return {name for name, verdict in found.items() if verdict != "ok"}


def test_a_sound_task_passes_even_with_dropout(tmp_path):
    found = verdicts(Toy(dropout=0.4), tmp_path)
    assert list(found) == [GRADIENT, TENSORS, RESUMED, LOADED] and not failing(found)


@pytest.mark.parametrize(
    ("task", "broken"),
    [
        (Averaging(), {GRADIENT}),
        (Leaking(), {TENSORS, GRADIENT, RESUMED, LOADED}),
        (Forgetful(), {LOADED}),
    ],
)
def test_each_check_can_fail(task, broken, tmp_path):
    found = failing(verdicts(task, tmp_path))
    assert found <= broken and found & broken and (TENSORS in found) == (TENSORS in broken)


def test_an_optimizer_that_is_not_restored_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(optimizer, "load_state", lambda *_: None)
    assert failing(verdicts(Toy(), tmp_path)) == {RESUMED}


def test_random_numbers_that_are_not_restored_are_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "set_rng_state", lambda _: None)
    assert failing(verdicts(Toy(dropout=0.4), tmp_path)) == {RESUMED}


def test_a_nan_is_a_failure():
    assert compare_to_tolerance("x", "y", float("nan"), 1.0, "").verdict == "failed"


def test_interventions_leave_no_trace():
    module = torch.nn.Sequential(
        torch.nn.Embedding(5, 4), torch.nn.Dropout(0.5), torch.nn.LSTM(4, 4, 2, dropout=0.3)
    )
    ids = torch.tensor([1, 2])
    plain = module[0](ids)
    with embeddings_perturbed(module, 1e-3), without_dropout(module):
        assert torch.allclose(module[0](ids), plain, rtol=2e-3) and not torch.equal(
            module[0](ids), plain
        )
        assert module[1].p == 0 and module[2].dropout == 0
    assert torch.equal(module[0](ids), plain) and module[1].p == 0.5 and module[2].dropout == 0.3


def test_no_rounding_excuses_a_lost_gradient(tmp_path, monkeypatch):
    monkeypatch.setattr(CheckFixture, "allowed", lambda fixture, noise: (7.0, "very coarse numbers"))
    task = Toy()
    recipe = Recipe(task="toy", budget=Budget(epochs=1), methods={"toy": {}}).model_copy(
        update={"methods": {"toy": Method(kind="toy")}}
    )
    model = task.build(frozen=True)
    shake(model)
    fixture = CheckFixture(
        SubsetTask(task, ToyData(), [0, 3, 5, 8, 9, 11]), recipe, "toy", model, tmp_path, CPU, 0
    )
    found = {
        one.name: one
        for one in shared_checks(
            fixture, lambda: task.build(frozen=True), lambda model: contextlib.nullcontext()
        )
    }
    assert found[GRADIENT].tolerance == 0.5 and "lost gradient" in found[GRADIENT].reason
