"""An ensemble: several models whose log-probabilities are averaged at every token."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tarazu.captions.model.decoders import State


class Ensemble(nn.Module):
    """Several models that decode together. The state is the members' states in a row.

    Args:
        members: models with `start`, `step` and `forward_teacher_forced`.
    """

    def __init__(self, members: list[nn.Module]):
        super().__init__()
        self.members = nn.ModuleList(members)
        self.state_sizes: list[int] = []  # tensors in each member's state

    @property
    def image_state_indices(self) -> tuple[int, ...]:
        """Indices of the state's tensors that depend on the image alone, known after `start`."""
        indices: list[int] = []
        offset = 0
        for member, size in zip(self.members, self.state_sizes, strict=True):
            indices += [offset + i for i in member.image_state_indices]
            offset += size
        return tuple(indices)

    def start(self, images: Tensor) -> State:
        """Return the state before the first token of images: pixels (B, S, S, 3) or (B, P, D)."""
        states = [member.start(images) for member in self.members]
        self.state_sizes = [len(state) for state in states]
        return tuple(tensor for state in states for tensor in state)

    def step(self, state: State, token: Tensor) -> tuple[Tensor, State, Tensor | None]:
        """Decode one token (B,).

        Returns:
            Mean log-probabilities (B, V), the new state, and the mean attention weights (B, P) of
            the members that have any, or None.
        """
        total, new_state, alphas, offset = 0.0, [], [], 0
        for member, size in zip(self.members, self.state_sizes, strict=True):
            logits, member_state, alpha = member.step(state[offset : offset + size], token)
            total = total + torch.log_softmax(logits.float(), -1)
            new_state += member_state
            alphas.append(alpha)
            offset += size
        return total / len(self.members), tuple(new_state), _mean_attention(alphas)

    def forward_teacher_forced(
        self,
        images: Tensor,
        tokens: Tensor,
        need_weights: bool = True,
        positions: Tensor | None = None,
        image_index: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """See `ImageCaptioningModel.forward_teacher_forced`.

        Returns:
            Mean log-probabilities (B, T, V) in place of logits, mean weights (B, T, P) or None.
        """
        shared = {} if image_index is None else {"image_index": image_index}
        outputs = [
            member.forward_teacher_forced(images, tokens, need_weights, positions, **shared)
            for member in self.members
        ]
        log_probs = [torch.log_softmax(logits.float(), -1) for logits, _ in outputs]
        return torch.stack(log_probs).mean(0), _mean_attention([alpha for _, alpha in outputs])


def _mean_attention(alphas: list[Tensor | None]) -> Tensor | None:
    """The mean of the attention weights (..., P) that are not None."""
    weights = [alpha.float() for alpha in alphas if alpha is not None]
    return torch.stack(weights).mean(0) if weights else None
