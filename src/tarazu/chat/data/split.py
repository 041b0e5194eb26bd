"""Which rows go into which split: decided by what a conversation says, in exact counts, the same on every machine.

Every conversation has a 64-bit key. Its rank among the keys, stirred with the seed, decides its split; so the same
conversation is never in two splits, and adding a row moves few others.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

SPLITS = ("train", "validation", "test")


def split_by_hash(
    keys: np.ndarray, shares: Mapping[str, float], seed: int
) -> dict[str, np.ndarray]:
    """Positions in `keys` (rows,) uint64 of every split, ascending; counts are the rounded shares, at least one row.

    Equal keys stay together, so with duplicates a split may have a few rows more.
    """
    order = np.lexsort((keys, _mix(keys, seed)))
    ranked, total = keys[order], len(keys)
    edges, begin = {}, 0
    for name in ("test", "validation"):
        end = min(begin + max(1, round(total * shares[name])), total)
        while begin < end < total and ranked[end] == ranked[end - 1]:
            end += 1
        edges[name], begin = (begin, end), end
    edges["train"] = (begin, total)
    return {name: np.sort(order[slice(*edges[name])]) for name in SPLITS}


def find_duplicates(keys: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two masks (rows,): rows that say what an earlier row of their group says, and what one of another group says."""
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    again = first[inverse] != np.arange(len(keys))
    elsewhere = again & (groups[first[inverse]] != groups)
    return again & ~elsewhere, elsewhere


def _mix(keys: np.ndarray, seed: int) -> np.ndarray:
    """The keys stirred with a seed (splitmix64), so that another seed gives another order."""
    x = keys.astype(np.uint64) + np.uint64((seed + 1) * 0x9E3779B97F4A7C15 % 2**64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    return x ^ (x >> np.uint64(31))
