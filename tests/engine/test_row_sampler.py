"""The order of training rows."""

from __future__ import annotations

from tarazu.engine.row_sampler import RowSampler, inverse_shuffle


def epochs(sampler: RowSampler) -> list[list[int]]:
    """The rows of the first two epochs."""
    steps = sampler.steps_per_epoch
    return [
        [row for step in range(steps) for row in sampler.rows_of_step(steps * epoch + step)]
        for epoch in range(2)
    ]


def test_every_epoch_visits_every_row_once_in_another_order():
    first, second = epochs(RowSampler(23, 5, seed=3))
    assert sorted(first) == sorted(second) == list(range(23)) and first != second


def test_order_depends_on_the_seed_and_not_on_earlier_steps():
    sampler = RowSampler(23, 5, seed=3)
    epochs(sampler)
    assert RowSampler(23, 5, seed=3).rows_of_step(7) == sampler.rows_of_step(7)
    assert RowSampler(23, 5, seed=4).rows_of_step(7) != sampler.rows_of_step(7)
    assert sampler.epoch(5) == 1.0


def test_groups_stay_adjacent_in_every_epoch():
    first, second = epochs(RowSampler(23, 10, seed=3, group_size=5))
    assert sorted(first) == sorted(second) == list(range(23)) and first != second
    for order in (first, second):
        first_rows = [row for row in order if row % 5 == 0]
        assert order == [row for start in first_rows for row in range(start, min(start + 5, 23))]


def test_inverse_shuffle_gives_the_rows_in_their_order():
    sampler, rows = RowSampler(23, 5, seed=3), list(range(100, 123))
    arranged = inverse_shuffle(rows, sampler)
    assert [arranged[position] for position in epochs(sampler)[0]] == rows
