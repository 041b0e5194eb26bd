"""The ledger of a run."""

from __future__ import annotations

import torch

from tarazu.engine.ledger import Ledger


def test_peak_memory_is_of_training_alone():
    ledger = Ledger(torch.device("cpu"))
    with ledger.phase("train"):
        torch.ones(1_000_000)
    training_peak = ledger.memory["resident"]
    with ledger.phase("generate"):
        large = torch.ones(40_000_000)
    assert ledger.memory["resident"] == training_peak
    with ledger.phase("train"):
        torch.ones(1000)
    assert ledger.memory["resident"] > training_peak + 100 * 2**20, "held memory counts"
    del large
