"""One forward pass, the same for every method: tokens and virtual tokens in, hidden states out."""

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
    """Run the decoder on a batch.

    Without `past` nothing is cached, except that a prefix is the start of a cache where the
    attention takes dense masks.

    Args:
        model: the model.
        batch: the batch, on the model's device.
        past: keys and values of earlier positions. The batch attends to them and is appended.

    Returns:
        (B, T, width), the last hidden states.
    """
    config, prefix_length = model.base.config, model.prefix_length
    embeddings = embed(model, batch)
    if past is None and (mask := sparse_mask(config, batch, prefix_length)) is not None:
        # `compile_layers.wrap_layers` hands each layer its part of the prefix.
        options = {"prefixes": model.prefix()} if prefix_length else {}
        options["use_cache"] = False
    else:
        segments, positions = batch.segments, batch.positions
        if past is None and prefix_length:
            past = KVState(model, batch)
        if past is not None:
            segments, positions = past.append(batch)
        grid = (batch.segments, segments, batch.positions, positions)
        mask = dense_masks(config, embeddings.dtype, *grid)
        cache = past.cache if past else None
        options = {"past_key_values": cache, "use_cache": cache is not None}
    out = model.base.get_decoder()(
        inputs_embeds=embeddings,
        attention_mask=mask,
        position_ids=batch.positions,
        **options,
    )
    return out.last_hidden_state


def embed(model: TrainableChatModel, batch: ChatBatch) -> torch.Tensor:
    """(B, T, width): token embeddings, with the soft prompt at its positions."""
    embeddings = model.base.get_input_embeddings()(batch.ids)
    if model.prompt is None:
        return embeddings
    prompt = model.prompt().to(embeddings.dtype)
    is_virtual = (batch.virtual_indices >= 0)[..., None]
    return torch.where(is_virtual, prompt[batch.virtual_indices.clamp_min(0)], embeddings)


class KVState:
    """The KV cache, with the segment and position of each key, for the masks of later positions.

    Args:
        model: the model; its prefix is the start of the cache.
        batch: a batch of the lines that will follow, for their number and device.
    """

    def __init__(self, model: TrainableChatModel, batch: ChatBatch):
        lines, device = batch.ids.shape[0], batch.ids.device
        # Without a config every layer keeps all keys: the mask takes care of the sliding window.
        self.cache = DynamicCache()
        shape = (lines, model.prefix_length)
        self.segments = torch.full(shape, SHARED, device=device)
        self.positions = torch.arange(model.prefix_length, device=device).expand(shape)
        if model.prefix:
            dtype = model.base.get_input_embeddings().weight.dtype
            for layer, pair in enumerate(model.prefix()):
                keys, values = (t.to(dtype).expand(lines, *t.shape) for t in pair)
                self.cache.update(keys, values, layer)

    def append(self, batch: ChatBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Add the batch's positions; the decoder itself adds their keys and values.

        Returns:
            (B, K) segments and positions of all keys.
        """
        self.segments = torch.cat([self.segments, batch.segments], 1)
        self.positions = torch.cat([self.positions, batch.positions], 1)
        return self.segments, self.positions

    def concat(self, others: list[KVState]) -> None:
        """Take the lines of other states below its own; all are padded on the left to the
        longest."""
        states = [self, *others]
        lengths = [state.segments.shape[1] for state in states]
        padding = [max(lengths) - length for length in lengths]

        def stacked(tensors: list[torch.Tensor]) -> torch.Tensor:
            """(B, heads, K, head_dim) keys or values of all states."""
            padded = [F.pad(t, (0, 0, n, 0)) for t, n in zip(tensors, padding, strict=True)]
            return torch.cat(padded)

        cache = DynamicCache()
        for number in range(len(self.cache.layers)):
            layers = [state.cache.layers[number] for state in states]
            keys = stacked([layer.keys for layer in layers])
            values = stacked([layer.values for layer in layers])
            cache.update(keys, values, number)
        self.cache = cache
        pairs = list(zip(states, padding, strict=True))
        self.segments = torch.cat([F.pad(s.segments, (n, 0), value=PAD) for s, n in pairs])
        self.positions = torch.cat([F.pad(s.positions, (n, 0)) for s, n in pairs])

    def select(self, lines: torch.Tensor) -> None:
        """Keep only these (n,) lines: finished answers need no more work."""
        self.cache.batch_select_indices(lines)
        self.segments, self.positions = self.segments[lines], self.positions[lines]
