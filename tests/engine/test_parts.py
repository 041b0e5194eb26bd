"""Order of rows, schedule, fingerprints, ledger."""

from __future__ import annotations

import math

import pytest
import torch

from tarazu.engine.fingerprint import compare, fingerprint, require_ok
from tarazu.engine.ledger import Ledger
from tarazu.engine.lr_schedule import lr_factor_in_phase, lr_factor
from tarazu.engine.row_sampler import RowSampler
from tarazu.engine.trainable import TrainingPhase
from tarazu.errors import TarazuError


def test_every_epoch_shows_every_row_once_in_another_order():
    order = RowSampler(23, 5, seed=3)
    epochs = [
        [row for step in range(5) for row in order.rows_of_step(5 * epoch + step)] for epoch in range(2)
    ]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(23)) and epochs[0] != epochs[1]
    assert RowSampler(23, 5, seed=3).rows_of_step(7) == order.rows_of_step(7), (
        "the order must not depend on how one came to a step"
    )
    assert order.rows_of_step(7) != RowSampler(23, 5, seed=4).rows_of_step(7)
    assert order.epoch(5) == 1.0


def test_schedules_climb_and_fall():
    assert lr_factor(0.05, "cosine", 0.1) == 0.5 and lr_factor(0.1, "cosine", 0.1) == 1
    assert lr_factor(1, "cosine", 0.1) == pytest.approx(0) and lr_factor(
        0.55, "linear", 0.1
    ) == pytest.approx(0.5)
    assert lr_factor(0.9, "constant", 0.1) == 1 and lr_factor(0, "linear", 0.1) > 0


def test_neighbours_stay_together_in_another_order_each_epoch():
    order = RowSampler(23, 10, seed=3, group_size=5)
    epochs = [
        [row for step in range(3) for row in order.rows_of_step(3 * epoch + step)] for epoch in range(2)
    ]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(23)) and epochs[0] != epochs[1]
    for epoch in epochs:
        firsts = [row for row in epoch if row % 5 == 0]
        assert epoch == [row for first in firsts for row in range(first, min(first + 5, 23))]


def test_a_phase_begins_its_schedule_anew_at_its_own_height():
    """Ten epochs of four steps, of which the last four train for something else at a tenth of the rate."""
    phases = [TrainingPhase(6, 0.1)]
    rates = [lr_factor_in_phase(step / 40, step / 4, phases, "cosine", 0.1) for step in range(40)]
    assert max(rates[:24]) == pytest.approx(1, abs=0.01) and rates[23] < 0.02
    assert (
        rates[24] < 0.01 and max(rates[24:]) == pytest.approx(0.1, abs=0.002) and rates[39] < 0.002
    )
    assert [lr_factor_in_phase(step / 40, step / 4, [], "cosine", 0.1) for step in range(40)] == [
        lr_factor(step / 40, "cosine", 0.1) for step in range(40)
    ]


def test_fingerprints_find_one_flipped_bit_and_what_stood_still():
    module = torch.nn.Sequential(torch.nn.Linear(40, 30), torch.nn.BatchNorm1d(30))
    before = fingerprint(module)
    assert before == fingerprint(module)
    module[1].running_mean[3] = math.ulp(0.0) + 1e-40  # a denormal: allclose would not see it
    proof = compare(before, fingerprint(module), frozenset({"0.weight"}))
    assert proof["unexpectedly_changed"] == ["1.running_mean"] and proof["unexpectedly_unchanged"] == [
        "0.weight"
    ]
    with pytest.raises(TarazuError, match=r"1\.running_mean.*0\.weight"):
        require_ok(proof, "here")
    with pytest.raises(
        TarazuError,
        match=r"did not change: 0\.weight(?s:.*)after a single step give a larger budget",
    ):
        require_ok({**proof, "unexpectedly_changed": []}, "here")


def test_shape_and_dtype_are_part_of_the_fingerprint():
    a, b = torch.nn.Module(), torch.nn.Module()
    a.register_buffer("x", torch.zeros(4, 2))
    b.register_buffer("x", torch.zeros(2, 4))
    assert fingerprint(a) != fingerprint(b)


def test_training_memory_is_that_of_training_alone():
    ledger = Ledger(torch.device("cpu"))
    with ledger.phase("train"):
        torch.ones(1_000_000)
    quiet = ledger.memory["resident"]
    with ledger.phase("generate"):
        big = torch.ones(40_000_000)
    assert ledger.memory["resident"] == quiet
    with ledger.phase("train"):
        torch.ones(1000)
    assert ledger.memory["resident"] > quiet + 100 * 2**20, "what is held while training counts"
    del big
