"""FLOPs counted on a batch, and the utilisation of the device."""

from __future__ import annotations

import pytest
import torch
from engine.toy_task import CPU, SYMBOLS, Toy, ToyData

from tarazu.engine import flops
from tarazu.engine.counts import TokenCounts
from tarazu.engine.ledger import Ledger
from tarazu.recipe.schema import Budget, Recipe

RECIPE = Recipe(task="toy", budget=Budget(epochs=1, batch_rows=4), methods={"toy": {}})


class FirstOfPair(torch.nn.Module):
    def forward(self, pair):
        return pair[0]


class Recurrent(Toy):
    """Has an LSTM, whose matrix products the library's kernel hides from torch's counter."""

    def build(self, **options):
        model = super().build(**options)
        embedding, _, linear = model.module
        model.module = torch.nn.Sequential(embedding, torch.nn.LSTM(8, 8), FirstOfPair(), linear)
        return model


def finished_ledger() -> Ledger:
    ledger = Ledger(CPU)
    ledger.seconds["train"], ledger.counts = 2.0, TokenCounts(tokens=1000)
    return ledger


def predictions_per_token() -> float:
    """Of the counted batch: the first token of a row is not predicted."""
    lengths = [len(row) for row in ToyData().rows[:4]]
    return (sum(lengths) - len(lengths)) / sum(lengths)


def test_linear_layer_counts_forward_and_twice_backward():
    task = Toy()
    model = task.build()
    expected = 3 * 2 * 8 * SYMBOLS * predictions_per_token()
    assert flops.count_batch_flops(task, model, ToyData(), RECIPE) == pytest.approx(expected)
    assert all(p.grad is None for p in model.module.parameters()) and model.module.training


def test_lstm_is_counted():
    task = Recurrent()
    gates, linear = 32 * (8 + 8), 8 * SYMBOLS
    expected = 3 * 2 * (gates + linear) * predictions_per_token()
    counted = flops.count_batch_flops(task, task.build(), ToyData(), RECIPE)
    assert counted == pytest.approx(expected, rel=0.1)


def test_metrics_of_a_run():
    task, ledger = Toy(), finished_ledger()
    metrics = flops.flops_metrics(task, task.build(), ToyData(), RECIPE, ledger)
    assert metrics["model_flops"] == pytest.approx(1000 * metrics["flops_per_token"])
    utilisation = metrics["model_flops"] / 2 / metrics["device_matmul_flops"]
    assert metrics["utilisation"] == pytest.approx(utilisation)
    assert 1e8 < metrics["device_matmul_flops"] < 1e16


def test_untrained_model_has_no_metrics():
    model = Toy().build()
    model.trainable_names = frozenset()
    metrics = flops.flops_metrics(Toy(), model, ToyData(), RECIPE, finished_ledger())
    assert set(metrics.values()) == {None}


def test_model_that_cannot_be_counted_does_not_fail_its_run():
    class Uncountable(Toy):
        def flops_per_token(self, model, data, recipe):
            raise TypeError("not countable")

    task = Uncountable()
    metrics = flops.flops_metrics(task, task.build(), ToyData(), RECIPE, finished_ledger())
    assert set(metrics.values()) == {None}
