"""Test-time augmentation: a model on the mirrored image, as one more member of an ensemble."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from tarazu.captions.model.decoders import State


class HorizontalFlip(nn.Module):
    """A model that gets every image mirrored. Its attention weights refer to the original image.

    Args:
        model: what decodes, from pixels (B, S, S, 3).
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    @property
    def image_state_indices(self) -> tuple[int, ...]:
        """Indices of the state's tensors that depend on the image alone."""
        return self.model.image_state_indices

    def start(self, images: Tensor) -> State:
        """Return the state before the first token of pixels (B, S, S, 3)."""
        return self.model.start(images.flip(2))

    def step(self, state: State, token: Tensor) -> tuple[Tensor, State, Tensor | None]:
        """Decode one token (B,): logits (B, V), new state, attention weights (B, P) or None."""
        logits, state, alpha = self.model.step(state, token)
        return logits, state, _flip_map(alpha)

    def forward_teacher_forced(
        self, images: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """See `ImageCaptioningModel.forward_teacher_forced`; images are pixels (B, S, S, 3)."""
        logits, alpha = self.model.forward_teacher_forced(images.flip(2), *args, **kwargs)
        return logits, _flip_map(alpha)


def _flip_map(alpha: Tensor | None) -> Tensor | None:
    """Mirror attention weights (..., P) over a square map, stored row by row."""
    if alpha is None:
        return None
    side = math.isqrt(alpha.shape[-1])
    return alpha.unflatten(-1, (side, side)).flip(-1).flatten(-2)
