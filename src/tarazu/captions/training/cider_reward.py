"""CIDEr, and BLEU, of sampled sentences as tensors, on the device: self-critical training asks for it hundreds of times a step.

`captions.cider` takes a tenth of a millisecond a sentence in Python, and the device would wait for it. Here an n-gram is
one number, a hash of its words', and all sentences are compared with all references of their images at once; nothing is
read back, so a step can be recorded. The score is the same (a test holds both together) but for its words: these are the
vocabulary's own ("man's" is one, the scorers' tokenizer makes two of it), and the sentence's end is one more, or sentences
would learn to break off ("... in front of a").

N sentences, L words with their ends, R references of an image, M words of the longest.
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

FACTOR = 6364136223846793005  # Knuth's; products of 64 bits wrap around alike everywhere
NOTHING = 0  # the hash of no n-gram


class CiderReward:
    """References counted and weighed once, as tensors.

    Args:
        references: cleaned words of each image's captions; an image is known by its place in this list.
    """

    def __init__(
        self,
        references: Sequence[Sequence[Sequence[str]]],
        vocabulary: Vocabulary,
        device: torch.device,
    ):
        numbers = _numbers(references, vocabulary)
        hashes = torch.stack(
            [_hashes(numbers, order) for order in range(ORDERS)], 2
        )  # (images, R, ORDERS, M)
        table, frequency = np.unique(_once_an_image(hashes.numpy()), return_counts=True)
        real = table != NOTHING
        self.table = torch.from_numpy(table[real]).to(device)
        self.idf = (
            torch.from_numpy(math.log(len(references)) - np.log(frequency[real])).float().to(device)
        )
        self.max_idf = torch.tensor(math.log(len(references)), device=device)
        self.lengths = (numbers != PAD).sum(2).to(device)
        self.hashes = hashes.to(device)
        self.weights = torch.cat([self._weights(some) for some in self.hashes.split(256)])
        self.norms = self.weights.square().sum(3).sqrt()  # (images, R, ORDERS)
        self.written = (self.lengths > 0).sum(1)

    def __call__(self, images: Tensor, drawn: Tensor, bleu: float = 0.0) -> Tensor:
        """images (N,), drawn (N, 1 + L), `<sos>` words `<eos>` `<pad>`... -> CIDEr (N,), 0..10, plus `bleu` times BLEU-4."""
        words, likeness, precision = drawn[:, 1:], 0.0, 0.0
        lengths, theirs = (words != PAD).sum(1, keepdim=True), self.lengths[images]
        for order in range(ORDERS):
            own, rows = _hashes(words, order), self.hashes[images, :, order]
            same = own[:, None, :, None] == rows[:, :, None]  # (N, R, L, M)
            likeness = likeness + self._cosines(own, same, images, order)
            if bleu:
                precision = (
                    precision
                    + _precision(own, same, lengths[:, 0] - order, 1.0 * (order > 0)).log()
                )
        apart = torch.exp(-((lengths - theirs).float() ** 2) / (2 * SIGMA**2))
        cider = 10 / ORDERS * (likeness * apart * (theirs > 0)).sum(1) / self.written[images]
        return (
            cider + bleu * (precision / ORDERS).exp() * _brevity(lengths, theirs) if bleu else cider
        )

    def _cosines(self, own: Tensor, same: Tensor, images: Tensor, order: int) -> Tensor:
        """Of each sentence's n-grams own (N, L) with every reference's, clipped: (N, R)."""
        weights, of_rows = self._weights(own), self.weights[images, :, order]
        clipped = (
            torch.minimum(weights[:, None, :, None], of_rows[:, :, None]) * of_rows[:, :, None]
        )
        dots = (clipped * same).sum((2, 3))
        norms = weights.square().sum(1).sqrt()[:, None] * self.norms[images, :, order]
        return (dots / norms.clamp(min=1e-12)).masked_fill(norms == 0, 0.0)

    def _weights(self, hashes: Tensor) -> Tensor:
        """(..., M) -> count times idf of each n-gram where it stands first in its sentence, 0 elsewhere."""
        at = torch.searchsorted(self.table, hashes).clamp(max=len(self.table) - 1)
        idf = torch.where(self.table[at] == hashes, self.idf[at], self.max_idf)
        return _counts(hashes) * idf


def _counts(hashes: Tensor) -> Tensor:
    """(..., M) -> how often each n-gram is in its sentence, where it stands first; 0 elsewhere."""
    same = hashes[..., :, None] == hashes[..., None, :]
    return same.sum(-1) * (~same.tril(-1).any(-1) & (hashes != NOTHING))


def _precision(own: Tensor, same: Tensor, total: Tensor, more: float) -> Tensor:
    """BLEU's clipped precision of one order, `more` added to both counts (Lin and Och 2004, for orders above one): (N,)."""
    matches = torch.minimum(_counts(own), same.sum(3).amax(1)).sum(1)
    return ((matches + more) / (total.clamp(min=0) + more).clamp(min=1)).clamp(min=1e-9)


def _brevity(lengths: Tensor, theirs: Tensor) -> Tensor:
    """BLEU's penalty, (N,), from the sentences' lengths (N, 1) and their references', (N, R): 0 where there is none."""
    apart = (theirs - lengths).abs() * 1000 + theirs  # the shorter of two equally near ones
    nearest = apart.masked_fill(theirs == 0, 10**6).argmin(1, keepdim=True)
    return (1 - theirs.gather(1, nearest) / lengths).clamp(max=0).exp().squeeze(1)


def _numbers(references: Sequence[Sequence[Sequence[str]]], vocabulary: Vocabulary) -> Tensor:
    """(images, R, M) of word numbers, each caption with `<eos>`; words outside the vocabulary get numbers of their own."""
    known = dict(vocabulary.ids)
    lines = [
        [[known.setdefault(word, len(known)) for word in line] + [EOS] for line in lines]
        for lines in references
    ]
    most = max(len(line) for image in lines for line in image)
    numbers = np.full((len(lines), max(map(len, lines)), most), PAD)
    for image, captions in enumerate(lines):
        for place, line in enumerate(captions):
            numbers[image, place, : len(line)] = line
    return torch.from_numpy(numbers)


def _hashes(words: Tensor, order: int) -> Tensor:
    """words (..., M) -> the hash of the n-gram of `order` + 1 words that begins at each place, NOTHING where none does."""
    count = words.shape[-1]
    found = words.new_full(words.shape, order + 1)
    for i in range(order + 1):
        later = torch.nn.functional.pad(words[..., min(i, count) :], (0, min(i, count)), value=PAD)
        found = (found * FACTOR + later) * FACTOR
        found = found ^ (found >> 29)
    return found.masked_fill(later == PAD, NOTHING)


def _once_an_image(hashes: np.ndarray) -> np.ndarray:
    """The n-grams of all images in one row, each as often as there are images that have it."""
    return np.concatenate([np.unique(image) for image in hashes])
