"""Greedy decoding and beam search, for many images at once.

Of a model the search uses only `start`, `step`, and a state that is a tuple of tensors with the
batch first.

Shapes: B images, K beams, V vocabulary size, L = max_words + 2 (with `<sos>` and `<eos>`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from tarazu.captions.data.vocabulary import EOS, PAD, SOS
from tarazu.captions.decoding.constraints import NEG_INF, mask_forbidden, repeated_trigrams
from tarazu.captions.model.decoders import State

# Steps between checks whether all beams are done. Each check makes the host wait for the device.
STOP_CHECK_INTERVAL = 4


class DecodableModel(Protocol):
    """A model, or an ensemble of models, that a caption can be decoded from."""

    @property
    def image_state_indices(self) -> tuple[int, ...]:
        """Indices of the state's tensors that depend on the image alone; valid after `start`."""
        ...

    def start(self, images: Tensor) -> State:
        """Return the state before the first token of images (B, ...)."""
        ...

    def step(self, state: State, token: Tensor) -> tuple[Tensor, State, Tensor | None]:
        """Decode one token (B,): logits (B, V), new state, attention weights (B, P) or None."""
        ...


@dataclass(frozen=True)
class Hypothesis:
    """A finished caption: token ids without `<sos>` and `<eos>`, and a normalised score."""

    token_ids: list[int]
    score: float


@torch.no_grad()
def greedy(model: DecodableModel, images: Tensor, max_words: int) -> list[Hypothesis]:
    """Return one caption for each image (B, ...): always the most probable next token."""
    return [best[0] for best in beam_search(model, images, 1, max_words)]


@torch.no_grad()
def beam_search(
    model: DecodableModel,
    images: Tensor,
    beams: int,
    max_words: int,
    length_penalty: float = 1.0,
    block_trigrams: bool = False,
    early_stopping: str = "full",
) -> list[list[Hypothesis]]:
    """Return up to `beams` different captions for each image, best first, at least one.

    Args:
        model: what decodes.
        images: (B, ...), as `model.start` takes them.
        beams: K, the width of the search.
        max_words: words of the longest caption.
        length_penalty: a caption of n words scores log p / (n + 1)^length_penalty; 1 gives the
            mean log-probability of a token, `<eos>` included.
        block_trigrams: never repeat three words in a row within a caption.
        early_stopping: "full": stop an image when K captions have ended. "ahead": also wait until
            no
            growing beam, scored as if it ended at the next token, beats the worst finished caption.
    """
    search = BeamState(len(images), beams, max_words, length_penalty, early_stopping, images.device)
    # Every image's state K times: row b * K + k belongs to beam k of image b.
    state = tuple(tensor.repeat_interleave(beams, 0) for tensor in model.start(images))
    image_state = set(model.image_state_indices)
    for position in range(max_words + 1):
        logits, state, _ = model.step(state, search.last_tokens())
        log_probs = _allowed_log_probs(logits, search, position, block_trigrams)
        parent_rows = search.advance(log_probs)
        # Follow the surviving beams. A beam's parent belongs to the same image, so the tensors that
        # depend on the image alone need no reordering.
        state = tuple(
            tensor if i in image_state else tensor.index_select(0, parent_rows)
            for i, tensor in enumerate(state)
        )
        if position % STOP_CHECK_INTERVAL == STOP_CHECK_INTERVAL - 1 and search.is_finished():
            break
    return search.hypotheses()


class BeamState:
    """The beams that can still grow and the best K finished captions of each image.

    Args:
        batch: B, number of images.
        beams: K.
        max_words: words of the longest caption.
        length_penalty: exponent of the length in a score.
        early_stopping: "full" or "ahead", see `beam_search`.
        device: of the tensors.
    """

    def __init__(
        self,
        batch: int,
        beams: int,
        max_words: int,
        length_penalty: float,
        early_stopping: str,
        device: torch.device,
    ):
        self.beams, self.max_words = beams, max_words
        self.length_penalty, self.early_stopping = length_penalty, early_stopping
        # Growing beams: tokens (B, K, L) and summed log-probabilities (B, K); -inf is a dead beam.
        self.tokens = torch.full((batch, beams, max_words + 2), PAD, device=device)
        self.tokens[:, :, 0] = SOS
        self.log_probs = torch.full((batch, beams), NEG_INF, device=device)
        # All beams start identical. Only the first is alive, or K copies would be found.
        self.log_probs[:, 0] = 0.0
        # Finished captions, best first: tokens (B, K, L) and normalised scores (B, K).
        self.finished_tokens = torch.full_like(self.tokens, PAD)
        self.finished_scores = torch.full_like(self.log_probs, NEG_INF)
        self.length = 0  # tokens after `<sos>`
        self.batch_index = torch.arange(batch, device=device).unsqueeze(1)  # (B, 1)

    def last_tokens(self) -> Tensor:
        """Return the last token of every beam, (B * K,)."""
        return self.tokens[:, :, self.length].flatten()

    def advance(self, log_probs: Tensor) -> Tensor:
        """Extend the beams by one token.

        Args:
            log_probs: of the next token, (B, K, V); -inf for what is not allowed.

        Returns:
            (B * K,): the row of each new beam's parent.
        """
        vocab_size = log_probs.shape[2]
        # 1. Rank all K * V extensions of an image. Each beam has one extension by <eos>, so at most
        #    K of the best 2K end and at least K can grow.
        totals = (self.log_probs.unsqueeze(2) + log_probs).flatten(1)  # (B, K * V)
        scores, picks = totals.topk(min(2 * self.beams, totals.shape[1]), 1)  # (B, 2K)
        parents, next_tokens = picks // vocab_size, picks % vocab_size
        candidates = self.tokens[self.batch_index, parents]  # (B, 2K, L)
        candidates[:, :, self.length + 1] = next_tokens
        self.length += 1

        # 2. Extensions by <eos> among the best K become finished captions; others are dropped.
        is_end = next_tokens == EOS
        in_best = torch.arange(scores.shape[1], device=scores.device) < self.beams
        ended_scores = torch.where(is_end & in_best, scores, NEG_INF)
        self._add_finished(candidates, ended_scores / self.length**self.length_penalty)

        # 3. The best K extensions that do not end are the new beams.
        growing_scores, order = torch.where(is_end, NEG_INF, scores).topk(self.beams, 1)

        # 4. Kill all beams of an image that is done: they score -inf from now on, so no further
        #    caption can finish, and no living beam is left to take their places.
        done = torch.isfinite(self.finished_scores).all(1, keepdim=True)
        if self.early_stopping == "ahead":
            best_growing = growing_scores[:, :1] / (self.length + 1) ** self.length_penalty
            done &= best_growing <= self.finished_scores[:, -1:]
        self.log_probs = growing_scores.masked_fill(done, NEG_INF)
        self.tokens = candidates[self.batch_index, order]
        return (parents.gather(1, order) + self.batch_index * self.beams).flatten()

    def _add_finished(self, tokens: Tensor, scores: Tensor) -> None:
        """Keep the best K of the finished captions and of tokens (B, n, L) with scores (B, n)."""
        all_scores = torch.cat([self.finished_scores, scores], 1)
        self.finished_scores, order = all_scores.topk(self.beams, 1)
        self.finished_tokens = torch.cat([self.finished_tokens, tokens], 1)[self.batch_index, order]

    def is_finished(self) -> bool:
        """Return whether no beam can grow. Waits for the device."""
        return not bool(torch.isfinite(self.log_probs).any())

    def hypotheses(self) -> list[list[Hypothesis]]:
        """Return the finished captions of each image, best first.

        There is at least one: `mask_forbidden` leaves only `<eos>` at the last position.
        """
        scores, tokens = self.finished_scores.tolist(), self.finished_tokens.tolist()
        return [
            [
                Hypothesis(ids[1 : ids.index(EOS)], score)
                for ids, score in zip(image_tokens, image_scores, strict=True)
                if score > NEG_INF
            ]
            for image_tokens, image_scores in zip(tokens, scores, strict=True)
        ]


def _allowed_log_probs(
    logits: Tensor, search: BeamState, position: int, block_trigrams: bool
) -> Tensor:
    """Log-probabilities (B, K, V) of the next token, -inf where it is not allowed.

    Args:
        logits: (B * K, V).
        search: the beams so far.
        position: of the next token, 0 for the first.
        block_trigrams: forbid tokens that would repeat a trigram.
    """
    # `mask_forbidden` also normalises: it returns log-probabilities.
    masked = mask_forbidden(logits.float(), position, search.max_words)
    log_probs = masked.view(-1, search.beams, logits.shape[1])
    if block_trigrams and position >= 3:  # before the fourth word no trigram can repeat
        repeats = repeated_trigrams(search.tokens[:, :, : position + 1], log_probs.shape[2])
        log_probs = log_probs.masked_fill(repeats, NEG_INF)
        # A beam without any allowed token is ended; this <eos> counts as probability 1.
        stuck = torch.isinf(log_probs).all(2, keepdim=True)
        is_eos = torch.arange(log_probs.shape[2], device=log_probs.device) == EOS
        log_probs = torch.where(stuck & is_eos, 0.0, log_probs)
    return log_probs
