"""Arithmetic counted on a batch, and the share of the device that it is."""

from __future__ import annotations

import pytest
import torch
from engine.toy_task import CPU, SYMBOLS, Toy, ToyData

from tarazu.engine import flops
from tarazu.engine.counts import TokenCounts
from tarazu.engine.ledger import Ledger
from tarazu.recipe.schema import Budget, Recipe

RECIPE = Recipe(task="toy", budget=Budget(epochs=1, batch_rows=4), methods={"toy": {}})


class Recurrent(Toy):
    """With an LSTM between, whose products the libraries' own kernels hide from torch's counter."""

    def build(self, **options):
        model = super().build(**options)
        model.module = torch.nn.Sequential(
            model.module[0], torch.nn.LSTM(8, 8), First(), model.module[2]
        )
        return model


class First(torch.nn.Module):
    def forward(self, pair):
        return pair[0]


def places() -> tuple[int, int]:
    rows = [len(row) for row in ToyData().rows[:4]]
    return sum(rows) - len(rows), sum(rows)


def test_a_linear_layer_is_counted_forward_and_twice_backward():
    task = Toy()
    model = task.build()
    predicted, tokens = places()
    assert flops.count_batch_flops(task, model, ToyData(), RECIPE) == pytest.approx(
        3 * 2 * 8 * SYMBOLS * predicted / tokens
    )
    assert all(p.grad is None for p in model.module.parameters()) and model.module.training


def test_an_lstm_is_not_overlooked():
    task = Recurrent()
    predicted, tokens = places()
    gates = 3 * 2 * 32 * (8 + 8) * predicted / tokens
    assert flops.count_batch_flops(task, task.build(), ToyData(), RECIPE) == pytest.approx(
        gates + 3 * 2 * 8 * SYMBOLS * predicted / tokens, rel=0.1
    )


def test_the_figures_of_a_run():
    task, ledger = Toy(), Ledger(CPU)
    ledger.seconds["train"], ledger.counts = 2.0, TokenCounts(tokens=1000)
    found = flops.flops_metrics(task, task.build(), ToyData(), RECIPE, ledger)
    assert found["model_flops"] == pytest.approx(1000 * found["flops_per_token"])
    assert found["utilisation"] == pytest.approx(
        found["model_flops"] / 2 / found["device_matmul_flops"]
    )
    assert 1e8 < found["device_matmul_flops"] < 1e16
    untrained = task.build()
    untrained.trainable_names = frozenset()
    assert set(flops.flops_metrics(task, untrained, ToyData(), RECIPE, ledger).values()) == {None}


def test_a_model_that_cannot_be_counted_does_not_lose_its_run():
    class Strange(Toy):
        def flops_per_token(self, model, data, recipe):
            raise TypeError("a forward of its own")

    ledger = Ledger(CPU)
    ledger.seconds["train"], ledger.counts = 2.0, TokenCounts(tokens=1000)
    assert set(flops.flops_metrics(Strange(), Strange().build(), ToyData(), RECIPE, ledger).values()) == {
        None
    }
