"""Learning-rate schedules."""

from __future__ import annotations

import pytest

from tarazu.engine.lr_schedule import lr_factor, lr_factor_in_phase
from tarazu.engine.trainable import TrainingPhase


def test_schedules_rise_and_fall():
    assert lr_factor(0.05, "cosine", 0.1) == 0.5 and lr_factor(0.1, "cosine", 0.1) == 1
    assert lr_factor(1, "cosine", 0.1) == pytest.approx(0)
    assert lr_factor(0.55, "linear", 0.1) == pytest.approx(0.5)
    assert lr_factor(0.9, "constant", 0.1) == 1 and lr_factor(0, "linear", 0.1) > 0


def test_phase_has_its_own_schedule_and_peak():
    """Ten epochs of four steps; the last four epochs are a phase at a tenth of the rate."""
    phases = [TrainingPhase(6, 0.1)]
    factors = [lr_factor_in_phase(i / 40, i / 4, phases, "cosine", 0.1) for i in range(40)]
    assert max(factors[:24]) == pytest.approx(1, abs=0.01) and factors[23] < 0.02
    assert factors[24] < 0.01 and max(factors[24:]) == pytest.approx(0.1, abs=0.002)
    assert factors[39] < 0.002


def test_without_phases_the_schedule_is_the_plain_one():
    for i in range(40):
        plain = lr_factor(i / 40, "cosine", 0.1)
        assert lr_factor_in_phase(i / 40, i / 4, [], "cosine", 0.1) == plain
