"""Which tokens a caption may contain at which position.

A caption never contains `<pad>`, `<sos>` or `<unk>`, is never empty, and always ends.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tarazu.captions.data.vocabulary import EOS, PAD, SOS, UNK

FORBIDDEN_TOKENS = (PAD, SOS, UNK)
NEG_INF = float("-inf")


def mask_forbidden(logits: Tensor, position: int, max_words: int) -> Tensor:
    """Return log-probabilities of the next token, -inf for tokens that are forbidden.

    Args:
        logits: (N, V).
        position: of the token, 0 for the first after `<sos>`.
        max_words: words of the longest caption.

    Returns:
        (N, V).
    """
    forbidden = forbidden_tokens(position, 1, logits.shape[1], max_words, logits.device)
    # Normalise over all tokens first: over the allowed ones only, a model that wants a forbidden
    # token would look confident.
    return torch.log_softmax(logits, 1).masked_fill(forbidden, NEG_INF)


def forbidden_tokens(
    first: int, count: int, vocab_size: int, max_words: int, device: torch.device
) -> Tensor:
    """Return which tokens are forbidden at `count` positions from `first` on.

    Forbidden are special tokens, `<eos>` at position 0, and all but `<eos>` at position
    `max_words`. The mask is made on the device, because a CUDA graph cannot copy from the host.

    Returns:
        (count, vocab_size) bool.
    """
    tokens = torch.arange(vocab_size, device=device)
    positions = torch.arange(first, first + count, device=device).unsqueeze(1)
    never = torch.stack([tokens == token for token in FORBIDDEN_TOKENS]).any(0)
    empty_caption = (positions == 0) & (tokens == EOS)
    too_long = (positions == max_words) & (tokens != EOS)
    return never | empty_caption | too_long


def repeated_trigrams(tokens: Tensor, vocab_size: int) -> Tensor:
    """Return which next tokens would repeat a trigram.

    Args:
        tokens: the beams so far, (B, K, t).
        vocab_size: V.

    Returns:
        (B, K, V) bool.
    """
    trigrams = tokens.unfold(2, 3, 1)  # (B, K, t - 2, 3)
    same_prefix = (trigrams[..., :2] == tokens[:, :, None, -2:]).all(3)
    mask = torch.zeros(*tokens.shape[:2], vocab_size, dtype=torch.bool, device=tokens.device)
    return mask.scatter(2, trigrams[..., 2] * same_prefix, same_prefix)
