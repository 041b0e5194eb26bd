"""The checks of training pass on a sound task, and each fails when its invariant is broken."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import torch
from engine.toy_task import CPU, Toy, ToyData

from tarazu.engine import optimizer
from tarazu.engine.invariants.checks import (
    CHANGED,
    GRADIENT,
    LOADED,
    RESUMED,
    TrainingFixture,
    shared_checks,
)
from tarazu.engine.invariants.fixture import CheckResult, compare_to_tolerance
from tarazu.engine.invariants.perturbations import embeddings_perturbed, shake, without_dropout
from tarazu.engine.subset_task import SubsetTask
from tarazu.engine.trainable import LossSum
from tarazu.recipe.schema import Budget, Method, Recipe

ROWS = [0, 3, 5, 8, 9, 11]


def run_checks(task: Toy, folder: Path) -> dict[str, CheckResult]:
    """The results by name."""
    recipe = Recipe(task="toy", budget=Budget(epochs=1), methods={"toy": {}})
    recipe = recipe.model_copy(update={"methods": {"toy": Method(kind="toy")}})
    model, data = task.build(frozen=True), ToyData()
    shake(model)
    fixture = TrainingFixture(
        data=data,
        rows=ROWS,
        recipe=recipe,
        name="toy",
        model=model,
        folder=folder,
        device=CPU,
        seed=0,
        subset=SubsetTask(task, data, ROWS),
    )
    results = shared_checks(
        fixture, lambda: task.build(frozen=True), lambda model: contextlib.nullcontext()
    )
    return {result.name: result for result in results}


def failed_checks(task: Toy, folder: Path) -> set[str]:
    results = run_checks(task, folder)
    return {name for name, result in results.items() if result.verdict != "ok"}


class MeanLoss(Toy):
    """Returns the mean over the tokens of a batch, which must not be accumulated."""

    def loss(self, model, batch):
        loss = super().loss(model, batch)
        return LossSum(loss.total / loss.count, loss.count)


class ChangesFrozen(Toy):
    """Changes a frozen tensor."""

    def loss(self, model, batch):
        if model.module.training:
            model.module[0].weight.data[0, 0] += 1e-3
        return super().loss(model, batch)


class SavesRounded(Toy):
    """Saves rounded weights."""

    def weights(self, model):
        return {name: t.bfloat16().float() for name, t in super().weights(model).items()}


def test_sound_task_passes_even_with_dropout(tmp_path):
    results = run_checks(Toy(dropout=0.4), tmp_path)
    assert list(results) == [GRADIENT, CHANGED, RESUMED, LOADED]
    assert {result.verdict for result in results.values()} == {"ok"}


@pytest.mark.parametrize(
    ("task", "broken"),
    [
        (MeanLoss(), {GRADIENT}),
        (ChangesFrozen(), {CHANGED, GRADIENT, RESUMED, LOADED}),
        (SavesRounded(), {LOADED}),
    ],
)
def test_each_check_can_fail(task, broken, tmp_path):
    failed = failed_checks(task, tmp_path)
    assert failed <= broken and failed & broken
    assert (CHANGED in failed) == (CHANGED in broken)


def test_optimizer_that_is_not_restored_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(optimizer, "load_state", lambda *_: None)
    assert failed_checks(Toy(), tmp_path) == {RESUMED}


def test_random_state_that_is_not_restored_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "set_rng_state", lambda _: None)
    assert failed_checks(Toy(dropout=0.4), tmp_path) == {RESUMED}


def test_nan_is_a_failure():
    assert compare_to_tolerance("x", "y", float("nan"), 1.0, "").verdict == "failed"


def test_perturbations_are_undone():
    module = torch.nn.Sequential(
        torch.nn.Embedding(5, 4), torch.nn.Dropout(0.5), torch.nn.LSTM(4, 4, 2, dropout=0.3)
    )
    ids = torch.tensor([1, 2])
    plain = module[0](ids)
    with embeddings_perturbed(module, 1e-3), without_dropout(module):
        perturbed = module[0](ids)
        assert torch.allclose(perturbed, plain, rtol=2e-3) and not torch.equal(perturbed, plain)
        assert module[1].p == 0 and module[2].dropout == 0
    assert torch.equal(module[0](ids), plain)
    assert module[1].p == 0.5 and module[2].dropout == 0.3


def test_no_rounding_excuses_a_lost_gradient(tmp_path, monkeypatch):
    monkeypatch.setattr(TrainingFixture, "allowed", lambda fixture, noise: (7.0, "coarse numbers"))
    result = run_checks(Toy(), tmp_path)[GRADIENT]
    assert result.tolerance == 0.5 and "lost gradient" in result.reason
