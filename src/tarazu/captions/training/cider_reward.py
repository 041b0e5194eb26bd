"""CIDEr, and BLEU, of sampled captions as tensors on the device, for self-critical training.

`metrics.cider` takes 0.1 ms a caption in Python, and a step scores hundreds of them while the
device waits. Here an n-gram is one number, a hash of its tokens, and all captions are compared with
all references of their images at once. Nothing is read back, so a CUDA graph can hold the step.

The score equals `metrics.cider` (tested) but for two differences. Its tokens are the vocabulary's
own: "man's" is one, where the scorers' tokenizer makes two. And `<eos>` counts as a token;
otherwise training would teach captions to break off ("... in front of a").

Shapes: n captions, L tokens with `<eos>`, R references of an image, M tokens of the longest one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tarazu.captions.data.vocabulary import EOS, PAD, Vocabulary
from tarazu.captions.metrics.bleu import ORDERS
from tarazu.captions.metrics.cider import SIGMA

HASH_FACTOR = 6364136223846793005  # Knuth's; 64-bit products wrap around alike on every device
NO_NGRAM = 0  # hash of a position at which no n-gram begins


class CiderReward:
    """The references of all images, counted and weighted once.

    Args:
        references: cleaned words of each image's captions; an image's id is its index here.
        vocabulary: the model's vocabulary.
        device: where captions are scored.
    """

    def __init__(
        self,
        references: Sequence[Sequence[Sequence[str]]],
        vocabulary: Vocabulary,
        device: torch.device,
    ):
        token_ids = _reference_ids(references, vocabulary)  # (images, R, M)
        hashes = torch.stack([_hashes(token_ids, order) for order in range(ORDERS)], 2)
        # Document frequency: images whose references have the n-gram.
        distinct = np.concatenate([np.unique(image) for image in hashes.numpy()])
        table, frequency = np.unique(distinct, return_counts=True)
        real = table != NO_NGRAM
        self.table = torch.from_numpy(table[real]).to(device)  # sorted hashes
        idf = math.log(len(references)) - np.log(frequency[real])
        self.idf = torch.from_numpy(idf).float().to(device)
        self.max_idf = torch.tensor(math.log(len(references)), device=device)  # unknown n-grams
        self.lengths = (token_ids != PAD).sum(2).to(device)  # (images, R), 0 where there is none
        self.hashes = hashes.to(device)  # (images, R, ORDERS, M)
        self.weights = torch.cat([self._weights(part) for part in self.hashes.split(256)])
        self.norms = self.weights.square().sum(3).sqrt()  # (images, R, ORDERS)
        self.num_references = (self.lengths > 0).sum(1)

    def __call__(self, image_ids: Tensor, captions: Tensor, bleu: float = 0.0) -> Tensor:
        """Score sampled captions.

        Args:
            image_ids: (n,).
            captions: (n, 1 + L): `<sos>`, words, `<eos>`, `<pad>`.
            bleu: weight of BLEU-4 (0..1) in the score.

        Returns:
            (n,): CIDEr, 0..10, plus `bleu` times BLEU-4.
        """
        tokens, similarity, log_precision = captions[:, 1:], 0.0, 0.0
        lengths = (tokens != PAD).sum(1, keepdim=True)  # (n, 1)
        reference_lengths = self.lengths[image_ids]  # (n, R)
        for order in range(ORDERS):
            hashes = _hashes(tokens, order)  # (n, L)
            reference_hashes = self.hashes[image_ids, :, order]  # (n, R, M)
            equal = hashes[:, None, :, None] == reference_hashes[:, :, None]  # (n, R, L, M)
            similarity = similarity + self._cosines(hashes, equal, image_ids, order)
            if bleu:
                smoothing = 1.0 if order > 0 else 0.0
                precision = _precision(hashes, equal, lengths[:, 0] - order, smoothing)
                log_precision = log_precision + precision.log()
        distance = (lengths - reference_lengths).float()
        gaussian = torch.exp(-(distance**2) / (2 * SIGMA**2))
        total = (similarity * gaussian * (reference_lengths > 0)).sum(1)
        cider = 10 / ORDERS * total / self.num_references[image_ids]
        if not bleu:
            return cider
        penalty = _brevity_penalty(lengths, reference_lengths)
        return cider + bleu * (log_precision / ORDERS).exp() * penalty

    def _cosines(self, hashes: Tensor, equal: Tensor, image_ids: Tensor, order: int) -> Tensor:
        """Clipped cosine of each caption with each reference, (n, R).

        Args:
            hashes: of the captions' n-grams, (n, L).
            equal: which reference n-grams each equals, (n, R, L, M).
            image_ids: (n,).
            order: 0 for single tokens.
        """
        weights, reference_weights = self._weights(hashes), self.weights[image_ids, :, order]
        clipped = torch.minimum(weights[:, None, :, None], reference_weights[:, :, None])
        dots = (clipped * reference_weights[:, :, None] * equal).sum((2, 3))
        norms = weights.square().sum(1).sqrt()[:, None] * self.norms[image_ids, :, order]
        return (dots / norms.clamp(min=1e-12)).masked_fill(norms == 0, 0.0)

    def _weights(self, hashes: Tensor) -> Tensor:
        """Hashes (..., M) -> count times idf where an n-gram first occurs, 0 elsewhere."""
        index = torch.searchsorted(self.table, hashes).clamp(max=len(self.table) - 1)
        idf = torch.where(self.table[index] == hashes, self.idf[index], self.max_idf)
        return _counts(hashes) * idf


def _counts(hashes: Tensor) -> Tensor:
    """Hashes (..., M) -> the count of each n-gram where it first occurs, 0 elsewhere."""
    equal = hashes[..., :, None] == hashes[..., None, :]
    is_first = ~equal.tril(-1).any(-1) & (hashes != NO_NGRAM)
    return equal.sum(-1) * is_first


def _precision(hashes: Tensor, equal: Tensor, total: Tensor, smoothing: float) -> Tensor:
    """BLEU's clipped precision of one order, (n,).

    Args:
        hashes: of the captions' n-grams, (n, L).
        equal: which reference n-grams each equals, (n, R, L, M).
        total: number of n-grams, (n,).
        smoothing: added to both counts (Lin and Och 2004, for orders above one).
    """
    matches = torch.minimum(_counts(hashes), equal.sum(3).amax(1)).sum(1)
    totals = (total.clamp(min=0) + smoothing).clamp(min=1)
    return ((matches + smoothing) / totals).clamp(min=1e-9)


def _brevity_penalty(lengths: Tensor, reference_lengths: Tensor) -> Tensor:
    """BLEU's brevity penalty, (n,).

    Args:
        lengths: of the captions, (n, 1).
        reference_lengths: (n, R), 0 where there is no reference.
    """
    # The nearest length, of two equally near ones the shorter.
    distance = (reference_lengths - lengths).abs() * 1000 + reference_lengths
    nearest = distance.masked_fill(reference_lengths == 0, 10**6).argmin(1, keepdim=True)
    return (1 - reference_lengths.gather(1, nearest) / lengths).clamp(max=0).exp().squeeze(1)


def _reference_ids(references: Sequence[Sequence[Sequence[str]]], vocabulary: Vocabulary) -> Tensor:
    """Token ids (images, R, M) with `<eos>`; words outside the vocabulary get new ids."""
    ids = dict(vocabulary.ids)
    lines = [
        [[ids.setdefault(word, len(ids)) for word in caption] + [EOS] for caption in captions]
        for captions in references
    ]
    max_length = max(len(line) for captions in lines for line in captions)
    padded = np.full((len(lines), max(map(len, lines)), max_length), PAD)
    for image, captions in enumerate(lines):
        for i, line in enumerate(captions):
            padded[image, i, : len(line)] = line
    return torch.from_numpy(padded)


def _hashes(tokens: Tensor, order: int) -> Tensor:
    """Tokens (..., M) -> the hash of the n-gram of `order` + 1 tokens at each position."""
    length = tokens.shape[-1]
    hashes = tokens.new_full(tokens.shape, order + 1)
    for i in range(order + 1):
        shift = min(i, length)
        later = torch.nn.functional.pad(tokens[..., shift:], (0, shift), value=PAD)
        hashes = (hashes * HASH_FACTOR + later) * HASH_FACTOR
        hashes = hashes ^ (hashes >> 29)
    return hashes.masked_fill(later == PAD, NO_NGRAM)  # the n-gram would pass the end
