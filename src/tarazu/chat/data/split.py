"""Assign rows to splits by a hash of their content: exact counts, the same on every machine.

Every conversation has a 64-bit key, a hash of its turns. Rows are ranked by their keys, mixed with
the seed, and the ranking is cut into splits. So a conversation is never in two splits, and adding
a row moves few others.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

SPLITS = ("train", "validation", "test")


def split_by_hash(
    keys: np.ndarray, fractions: Mapping[str, float], seed: int
) -> dict[str, np.ndarray]:
    """Cut the rows, ranked by their mixed keys, into test, validation and train.

    Args:
        keys: content keys (rows,), uint64.
        fractions: fraction of the rows for validation and test; the rest is train.
        seed: another seed gives another ranking.

    Returns:
        For each split its positions in `keys`, ascending. A split has the rounded fraction of the
        rows, at least one. Equal keys stay together, so duplicates can add a few rows.
    """
    order = np.lexsort((keys, _mix(keys, seed)))
    ranked, num_rows = keys[order], len(keys)
    ranges, begin = {}, 0
    for name in ("test", "validation"):
        end = min(begin + max(1, round(num_rows * fractions[name])), num_rows)
        while begin < end < num_rows and ranked[end] == ranked[end - 1]:
            end += 1  # do not cut between equal keys
        ranges[name], begin = slice(begin, end), end
    ranges["train"] = slice(begin, num_rows)
    return {name: np.sort(order[ranges[name]]) for name in SPLITS}


def find_duplicates(keys: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the rows whose content an earlier row has.

    Args:
        keys: content keys (rows,).
        groups: the source that each row comes from (rows,).

    Returns:
        Two masks (rows,): duplicates of a row in the same group, and of a row in another group.
    """
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    original = first[inverse]  # (rows,) the first row with the same key
    duplicate = original != np.arange(len(keys))
    across_groups = duplicate & (groups[original] != groups)
    return duplicate & ~across_groups, across_groups


def _mix(keys: np.ndarray, seed: int) -> np.ndarray:
    """Hash keys (rows,) uint64 with a seed by splitmix64 (Steele et al.

    2014, doi:10.1145/2660193.2660195).
    """
    x = keys.astype(np.uint64) + np.uint64((seed + 1) * 0x9E3779B97F4A7C15 % 2**64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    return x ^ (x >> np.uint64(31))
