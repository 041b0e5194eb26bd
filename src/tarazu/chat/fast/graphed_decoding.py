"""Greedy decoding with everything in place: fixed buffers, no word to the host, and on a GPU one
captured step replayed.

A decoding step of a small model is some hundreds of kernel launches of which the launching is the
cost. CUDA graphs (Gray 2019, "Getting started with CUDA graphs") pay it once. Same tokens as
`generation`'s plain path, which tests compare.
"""

from __future__ import annotations

import torch

from tarazu.chat.model.attention_mask import dense_masks
from tarazu.chat.model.batching import PAD, ChatBatch
from tarazu.chat.model.forward import KVState
from tarazu.chat.model.loss import logits_of
from tarazu.chat.model.trainable import TrainableChatModel

STOP_CHECK_INTERVAL = 16  # steps between looks at whether all answers have ended
WARM = 3  # real steps before the capture


class DecodeState:
    """The state of a batch of answers: keys and values with room for `most` more tokens, and the
    tokens written.

    It is also the cache that the model's layers write to (`update`), as far as they use one.
    """

    def __init__(
        self,
        model: TrainableChatModel,
        batch: ChatBatch,
        past: KVState,
        first: torch.Tensor,
        most: int,
    ):
        """Takes over `past`, which holds the prompts, and the (B,) first tokens of the answers."""
        self.base = model.base
        (lines, used), device = past.segments.shape, first.device
        room = -(-(used + most) // 64) * 64
        self.layers = [
            [self._widened(t, room) for t in (layer.keys, layer.values)]
            for layer in past.cache.layers
        ]
        self.segments = torch.full((lines, room), PAD, device=device)
        self.positions = torch.zeros((lines, room), dtype=torch.long, device=device)
        self.segments[:, :used], self.positions[:, :used] = past.segments, past.positions
        self.ids, self.own = first[:, None].clone(), batch.segments[:, -1:].clone()
        self.place = batch.positions[:, -1:] + 1
        self.slot, self.count = (
            torch.tensor([used], device=device),
            torch.tensor([0], device=device),
        )
        self.written = torch.zeros((lines, most), dtype=torch.long, device=device)

    def step(self) -> None:
        """Writes the current tokens down and finds the next ones."""
        self.written.index_copy_(1, self.count, self.ids)
        self.segments.index_copy_(1, self.slot, self.own)
        self.positions.index_copy_(1, self.slot, self.place)
        words = self.base.get_input_embeddings()(self.ids)
        mask = dense_masks(
            self.base.config, words.dtype, self.own, self.segments, self.place, self.positions
        )
        out = self.base.get_decoder()(
            inputs_embeds=words,
            attention_mask=mask,
            position_ids=self.place,
            past_key_values=self,
            use_cache=True,
        )
        self.ids.copy_(logits_of(self.base, out.last_hidden_state[:, -1]).argmax(-1)[:, None])
        for counter in (self.place, self.slot, self.count):
            counter.add_(1)

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer: int, *_, **__
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What a layer calls with the new place's keys and values, (B, heads, 1, size): all of
        them come back."""
        for kept, new in zip(self.layers[layer], (keys, values), strict=True):
            kept.index_copy_(2, self.slot, new.to(kept.dtype))
        return tuple(self.layers[layer])

    def get_seq_length(self, *_) -> int:
        return self.segments.shape[1]

    @staticmethod
    def _widened(tensor: torch.Tensor, room: int) -> torch.Tensor:
        wide = tensor.new_zeros((*tensor.shape[:2], room, tensor.shape[3]))
        wide[:, :, : tensor.shape[2]] = tensor
        return wide


@torch.no_grad()
def decode(steps: DecodeState, stop: set[int], most: int) -> list[list[int]]:
    """`most` tokens a line, or fewer once every line holds one of `stop`; the stop token is
    included."""
    device = steps.ids.device
    advance = steps.step
    torch.set_autocast_cache_enabled(
        False
    )  # a cast kept from before the capture would be freed under the graph
    for done in range(most):
        if done == WARM and device.type == "cuda":
            advance = _captured(steps).replay
        advance()
        if done % STOP_CHECK_INTERVAL == STOP_CHECK_INTERVAL - 1 and all(
            stop & set(line) for line in steps.written[:, : done + 1].tolist()
        ):
            return steps.written[:, : done + 1].tolist()
    return steps.written.tolist()


def _captured(steps: DecodeState) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        steps.step()  # recorded, not run
    return graph
