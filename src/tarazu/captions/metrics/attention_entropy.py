"""Entropy of attention weights: how widely a word's attention is spread."""

from __future__ import annotations

import numpy as np


def attention_entropy(alpha: np.ndarray) -> np.ndarray:
    """Return the entropy of each word's attention, in nats.

    Args:
        alpha: weights over positions, (words, P), each row with sum 1.

    Returns:
        (words,): 0 for a single position, log P for uniform attention.
    """
    return -(alpha * np.log(np.maximum(alpha, 1e-12))).sum(1)
