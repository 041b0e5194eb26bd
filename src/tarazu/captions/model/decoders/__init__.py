"""Decoders: each is one file, and each is two verbs.

    forward(features, tokens) -> logits          training: every place of the sentence at once
    start(features) -> state                     decoding: the picture is looked at once,
    step(state, token) -> logits, state, alpha   and words come one by one

Greedy, beam search, heat maps and ONNX know nothing else of a decoder. A state is a tuple of tensors whose first
dimension is the batch, so that a beam can be chosen, copied and dropped without knowing what is in it.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from tarazu.captions.settings import CaptionMethod

State = tuple[Tensor, ...]


class Decoder(nn.Module):
    """What every decoder offers. B images, P places, D channels, T words, V words in the vocabulary."""

    input_kind = "map"  # or "pooled", where the mean over the places is all that is used
    image_state_indices: tuple[
        int, ...
    ] = ()  # places in the state of what depends on the picture alone
    fast_path = ""  # what `fast: true` does, for the ledger

    def forward_teacher_forced(
        self, features: Tensor, tokens: Tensor, attention: bool = True, at: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """features (B, P, D), tokens (B, T) from <sos> on -> logits (B, T, V) and attention (B, T, P), if it has any.

        Without `attention` it may be None, where that saves work. With `at` (n,), positions in the flat (B T,), only
        their logits are computed: (n, V).
        """
        raise TypeError(f"{type(self).__name__} does not say how it is taught")

    def forward(self, features: Tensor, tokens: Tensor) -> Tensor:
        """features (B, P, D), tokens (B, T) -> logits (B, T, V): position t says what follows token t."""
        return self.forward_teacher_forced(features, tokens)[0]

    def start(self, features: Tensor) -> State:
        """features (B, P, D) -> the state before the first word."""
        raise TypeError(f"{type(self).__name__} does not say how it starts")

    def step(self, state: State, token: Tensor) -> tuple[Tensor, State, Tensor | None]:
        """state, token (B,) -> logits (B, V) for what follows it, the new state, and attention (B, P) or None."""
        raise TypeError(f"{type(self).__name__} does not say how it steps")


def select_positions(x: Tensor, at: Tensor | None) -> Tensor:
    """x (B, T, W) -> what stands at the flat positions `at`, (n, W); all of it without them."""
    return x if at is None else x.flatten(0, 1)[at]


def full_precision(x: Tensor) -> AbstractContextManager:
    """Keeps autocast away from a recurrence: what is rounded at every word adds up, and an LSTM is small anyway."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def output_head(inside: int, embedding: nn.Embedding, tied: bool) -> tuple[nn.Module, nn.Linear]:
    """An LSTM's way to its words: (to the width of the embedding where that is shared, the output layer).

    The embedding starts small and even, as the papers' do. Sharing: Press and Wolf 2017, arXiv:1608.05859.
    """
    words, width = embedding.weight.shape
    nn.init.uniform_(embedding.weight, -0.1, 0.1)
    output = nn.Linear(width if tied else inside, words)
    if tied:
        output.weight = embedding.weight
    return nn.Linear(inside, width) if tied and inside != width else nn.Identity(), output


def make_decoder(method: CaptionMethod, words: int, channels: int, places: int) -> Decoder:
    """The decoder of a method's settings, freshly initialised."""
    from tarazu.captions.model.decoders.show_and_tell import ShowAndTellDecoder
    from tarazu.captions.model.decoders.show_attend_tell import ShowAttendTellDecoder
    from tarazu.captions.model.decoders.transformer import TransformerDecoder

    kinds = {
        "show_and_tell": ShowAndTellDecoder,
        "show_attend_tell": ShowAttendTellDecoder,
        "transformer": TransformerDecoder,
    }
    return kinds[method.kind](method, words, channels, places)
