"""Splits by content: exact counts, no key in two splits, few rows moved by a change of the data."""

from __future__ import annotations

import numpy as np
import pytest

from tarazu.chat.data.split import SPLITS, find_duplicates, split_by_hash

FRACTIONS = {"train": 0.8, "validation": 0.15, "test": 0.05}


def keys(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**63, count).astype(np.uint64)


@pytest.mark.parametrize("count", [3, 10, 39, 1000])
def test_counts_are_the_rounded_fractions_and_every_row_is_in_one_split(count: int) -> None:
    parts = split_by_hash(keys(count), FRACTIONS, seed=3)
    assert len(parts["test"]) == max(1, round(count * 0.05))
    assert len(parts["validation"]) == max(1, round(count * 0.15))
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(count))
    assert all((np.diff(part) > 0).all() for part in parts.values())


def test_equal_keys_stay_in_one_split() -> None:
    for seed in range(50):
        repeated = np.repeat(keys(12, seed), 4)
        parts = split_by_hash(repeated, {"train": 0.6, "validation": 0.23, "test": 0.17}, seed)
        key_sets = [set(repeated[parts[split]].tolist()) for split in SPLITS]
        assert sum(map(len, key_sets)) == len(set.union(*key_sets)) == 12


def test_more_rows_move_few_and_another_seed_moves_many() -> None:
    rows = keys(2000)
    before = set(rows[split_by_hash(rows[:1900], FRACTIONS, 0)["test"]].tolist())
    after = set(rows[split_by_hash(rows, FRACTIONS, 0)["test"]].tolist())
    other = set(rows[split_by_hash(rows, FRACTIONS, 1)["test"]].tolist())
    assert len(before & after) > 0.85 * len(before) and len(after & other) < 0.2 * len(after)


def test_repeated_rows_within_and_across_groups() -> None:
    within, across = find_duplicates(
        np.array([7, 8, 7, 9, 8, 7], np.uint64), np.array([0, 0, 0, 1, 1, 1], np.int8)
    )
    assert within.tolist() == [False, False, True, False, False, False]
    assert across.tolist() == [False, False, False, False, True, True]
