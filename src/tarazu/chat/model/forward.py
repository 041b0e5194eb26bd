"""One forward pass, the same for every method: words and virtual tokens in, hidden states out."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from transformers import DynamicCache

from tarazu.chat.model.attention_mask import dense_masks, sparse_mask
from tarazu.chat.model.batching import PAD, SHARED, ChatBatch
from tarazu.chat.model.trainable import TrainableChatModel


def hidden_states(
    model: TrainableChatModel, batch: ChatBatch, past: KVState | None = None
) -> torch.Tensor:
    """The last hidden states, (B, T, width); `past`, if given, is read and extended by this batch.

    Without `past` nothing is cached, except that a prefix enters as the start of a cache where attention is not by blocks.
    """
    base = model.base
    embeddings = embed(model, batch)
    prefix = model.prefix_length
    if past is None and (mask := sparse_mask(base.config, batch, prefix)) is not None:
        start = {"prefixes": model.prefix()} if prefix else {}
        out = base.get_decoder()(
            inputs_embeds=embeddings,
            attention_mask=mask,
            position_ids=batch.positions,
            use_cache=False,
            **start,
        )
        return out.last_hidden_state
    past = past or (KVState(model, batch) if model.prefix else None)
    segments, positions = (batch.segments, batch.positions) if past is None else past.append(batch)
    mask = dense_masks(
        base.config, embeddings.dtype, batch.segments, segments, batch.positions, positions
    )
    cache = past.cache if past else None
    out = base.get_decoder()(
        inputs_embeds=embeddings,
        attention_mask=mask,
        position_ids=batch.positions,
        past_key_values=cache,
        use_cache=cache is not None,
    )
    return out.last_hidden_state


def embed(model: TrainableChatModel, batch: ChatBatch) -> torch.Tensor:
    """(B, T, width): word embeddings, with the soft prompt where virtual tokens stand."""
    words = model.base.get_input_embeddings()(batch.ids)
    if model.prompt is None:
        return words
    prompt = model.prompt().to(words.dtype)
    return torch.where(
        (batch.virtual_indices >= 0)[..., None], prompt[batch.virtual_indices.clamp_min(0)], words
    )


class KVState:
    """Keys and values so far, with the segment and position of each: what later places may look back at."""

    def __init__(self, model: TrainableChatModel, batch: ChatBatch):
        lines, device = batch.ids.shape[0], batch.ids.device
        self.cache = (
            DynamicCache()
        )  # without a config: every layer keeps all, and the mask does the sliding window
        shape = (lines, model.prefix_length)
        self.segments = torch.full(shape, SHARED, device=device)
        self.positions = torch.arange(shape[1], device=device).expand(shape)
        if model.prefix:
            dtype = model.base.get_input_embeddings().weight.dtype
            for layer, (keys, values) in enumerate(model.prefix()):
                self.cache.update(
                    *(t.to(dtype).expand(lines, *t.shape) for t in (keys, values)), layer
                )

    def append(self, batch: ChatBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Adds the batch's places; returns the (B, K) segments and positions of all keys."""
        self.segments = torch.cat([self.segments, batch.segments], 1)
        self.positions = torch.cat([self.positions, batch.positions], 1)
        return self.segments, self.positions

    def concat(self, others: list[KVState]) -> None:
        """Takes the lines of others below its own, all padded on the left to the longest."""
        parts = [self, *others]
        missing = [max(p.segments.shape[1] for p in parts) - p.segments.shape[1] for p in parts]
        cache = DynamicCache()
        for number in range(len(self.cache.layers)):
            layers = [part.cache.layers[number] for part in parts]
            both = ([layer.keys for layer in layers], [layer.values for layer in layers])
            cache.update(
                *(
                    torch.cat(
                        [F.pad(t, (0, 0, left, 0)) for t, left in zip(some, missing, strict=True)]
                    )
                    for some in both
                ),
                number,
            )
        self.cache = cache
        self.segments = torch.cat(
            [
                F.pad(p.segments, (left, 0), value=PAD)
                for p, left in zip(parts, missing, strict=True)
            ]
        )
        self.positions = torch.cat(
            [F.pad(p.positions, (left, 0)) for p, left in zip(parts, missing, strict=True)]
        )

    def select(self, lines: torch.Tensor) -> None:
        """Keeps only some lines: finished answers need no more work."""
        self.cache.batch_select_indices(lines)
        self.segments, self.positions = self.segments[lines], self.positions[lines]
