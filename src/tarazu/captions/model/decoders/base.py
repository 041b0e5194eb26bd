"""The interface of a decoder, and the parts that several decoders share.

A decoder has one method for training and two for generation:

    forward_teacher_forced(features, tokens)   every position of the sentence in one pass
    start(features) -> state                   encodes the image once
    step(state, token) -> logits, state, alpha one token at a time

Greedy decoding, beam search, heat maps and ONNX use nothing else. A state is a tuple of tensors
whose first dimension is the batch, so a beam is selected and copied without knowing its content.

Shapes: B images, P positions of the feature map, D channels, T tokens, V vocabulary size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from typing import ClassVar

import torch
from torch import Tensor, nn

State = tuple[Tensor, ...]


class Decoder(nn.Module, ABC):
    """Base class of the decoders.

    Attributes:
        input_kind: "map", or "pooled" where only the mean over the positions is used.
        image_state_indices: indices of the state's tensors that depend on the image alone.
        fast_path: what `fast: true` uses, for the ledger.
    """

    input_kind: ClassVar[str] = "map"
    image_state_indices: ClassVar[tuple[int, ...]] = ()
    fast_path: ClassVar[str] = ""

    @abstractmethod
    def forward_teacher_forced(
        self,
        features: Tensor,
        tokens: Tensor,
        need_weights: bool = True,
        positions: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Compute the logits of every position, given the tokens before it.

        Args:
            features: (B, P, D).
            tokens: (B, T), from `<sos>` on.
            need_weights: return attention weights. Without it they may be None, which saves work.
            positions: (n,) indices into the flattened (B * T,); only their logits are computed.

        Returns:
            Logits (B, T, V), or (n, V) with `positions`, and attention weights (B, T, P) or None.
        """

    @abstractmethod
    def start(self, features: Tensor) -> State:
        """Return the state before the first token.

        Args:
            features: (B, P, D).
        """

    @abstractmethod
    def step(self, state: State, token: Tensor) -> tuple[Tensor, State, Tensor | None]:
        """Decode one token.

        Args:
            state: the state before the token.
            token: (B,).

        Returns:
            Logits (B, V) of the next token, the new state, attention weights (B, P) or None.
        """

    def forward(self, features: Tensor, tokens: Tensor) -> Tensor:
        """Return logits (B, T, V) of features (B, P, D) and tokens (B, T)."""
        return self.forward_teacher_forced(features, tokens)[0]


def select_positions(x: Tensor, positions: Tensor | None) -> Tensor:
    """Return rows of x (B, T, W) at flat positions (n,), as (n, W); x itself without positions."""
    return x if positions is None else x.flatten(0, 1)[positions]


def autocast_disabled(x: Tensor) -> AbstractContextManager[object]:
    """Return a context that computes a recurrence in full precision on x's device.

    Rounding errors add up over the tokens, and an LSTM is small enough to be fast anyway.
    """
    device_type = x.device.type
    if torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


def output_head(
    input_size: int, embedding: nn.Embedding, tied: bool
) -> tuple[nn.Module, nn.Linear]:
    """Make the layers from a hidden state to the logits, and initialise the embedding.

    The embedding starts uniform and small, as in both LSTM papers. Tied output weights follow
    Press and Wolf (2017, arXiv:1608.05859).

    Args:
        input_size: width of the hidden state.
        embedding: (V, E); its weight is also the output layer's if `tied`.
        tied: share the weight.

    Returns:
        A projection to the output layer's width (the identity where none is needed), and the
        output layer.
    """
    vocab_size, embedding_size = embedding.weight.shape
    nn.init.uniform_(embedding.weight, -0.1, 0.1)
    output = nn.Linear(embedding_size if tied else input_size, vocab_size)
    if tied:
        output.weight = embedding.weight
    if tied and input_size != embedding_size:
        return nn.Linear(input_size, embedding_size), output
    return nn.Identity(), output
