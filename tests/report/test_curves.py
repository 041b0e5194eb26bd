"""The analysis of loss curves of known shapes."""

from __future__ import annotations

import numpy as np
import pytest

from tarazu.report.analysis.curves import analyse, curve, downsample
from tarazu.report.analysis.study_view import RunView


def run_of(validation: list[float], train: list[float | None] = ()) -> RunView:
    """A run with these validation losses every 100 tokens and training losses every 10."""
    events = [
        {"event": "validation", "tokens": i * 100, "loss": y} for i, y in enumerate(validation)
    ]
    events += [
        {"event": "step", "step": i, "tokens": i * 10, "loss": y, "grad_norm": 1.0}
        for i, y in enumerate(train)
    ]
    return RunView("x", "lora", 0, "x/seed-0", events=events)


def test_falling_curve_that_flattens():
    facts = analyse(run_of([3.0, 2.5, 2.1, 2.0, 1.99, 1.985, 1.984]))
    assert (facts.flat_at, facts.best_at) == (300, 600)
    assert not facts.overfit and not facts.still_falling


def test_overfitting_is_a_rise_after_the_best_value():
    facts = analyse(run_of([3.0, 2.0, 1.8, 2.1, 2.4]))
    assert facts.overfit and facts.best_at == 200 and facts.validation_best == 1.8
    assert not analyse(run_of([3.0, 2.0, 1.8, 1.805])).overfit  # a quarter of a percent is noise


def test_curve_is_still_falling_at_the_end():
    facts = analyse(run_of([3.0, 2.8, 2.6, 2.4]))
    assert facts.still_falling and facts.flat_at is None


def test_spike_is_found_in_noise():
    noise = np.random.default_rng(0).normal(2.0, 0.05, 80).tolist()
    assert analyse(run_of([], noise)).spikes == []
    noise[50] = 4.0
    assert analyse(run_of([], noise)).spikes == [50]


def test_first_and_last_training_losses_are_means_of_several_steps():
    facts = analyse(run_of([3.0, 2.5], [3.0] * 20 + [2.0] * 20))
    assert (facts.train_first, facts.train_last, facts.gap) == (3.0, 2.0, 0.5)


def test_null_losses_are_no_curve():
    facts = analyse(run_of([], [None, None]))
    assert facts.train_first is None and facts.validation_first is None and facts.flat_at is None


def test_downsampling_keeps_the_mean():
    points = curve(run_of([], np.linspace(3, 2, 1000).tolist()), "step")
    downsampled, size = downsample(points, 100)
    assert len(downsampled.x) == 100 and size == 10
    assert np.mean(downsampled.y) == pytest.approx(np.mean(points.y))
