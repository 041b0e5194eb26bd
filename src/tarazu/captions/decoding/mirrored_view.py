"""A second look: the same model on the mirrored picture, as one more voice in an ensemble."""

from __future__ import annotations

import math

from torch import Tensor, nn

from tarazu.captions.model.decoders import State


class HorizontalFlip(nn.Module):
    """A model that is shown every picture (B, S, S, 3) in a mirror; where it looks is told of the picture itself."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    @property
    def image_state_indices(self) -> tuple[int, ...]:
        return self.model.image_state_indices

    def start(self, pictures: Tensor) -> State:
        return self.model.start(pictures.flip(2))

    def step(self, state: State, token: Tensor) -> tuple[Tensor, State, Tensor | None]:
        logits, state, alpha = self.model.step(state, token)
        return logits, state, _turned(alpha)

    def forward_teacher_forced(
        self, pictures: Tensor, *rest, **named
    ) -> tuple[Tensor, Tensor | None]:
        logits, alpha = self.model.forward_teacher_forced(pictures.flip(2), *rest, **named)
        return logits, _turned(alpha)


def _turned(alpha: Tensor | None) -> Tensor | None:
    """Attention (..., P) over a square map, row by row, mirrored."""
    if alpha is None:
        return None
    side = math.isqrt(alpha.shape[-1])
    return alpha.unflatten(-1, (side, side)).flip(-1).flatten(-2)
