"""Greedy decoding from fixed buffers: on a GPU one decoding step is captured as a CUDA graph.

A decoding step of a small model is some hundreds of kernels, and launching them takes longer than
running them. A CUDA graph launches all of them with one call (Gray 2019, "Getting started with
CUDA graphs"). The tokens are those of the eager path in `evaluation/generation.py`, with which
tests compare.

For one batch of prompts:

1. Prefill fills a KV cache (`generation.prefill`). `DecodeState` copies it into buffers with
   space for all new tokens, so that no address changes.
2. The first steps run eagerly: libraries choose algorithms and allocate what they need.
3. One more step is captured. Every further step replays it: it reads the current tokens from the
   buffers and writes the next ones there. Position counters are tensors on the device.
4. Every few steps the host reads the tokens and stops once all answers have ended.
"""

from __future__ import annotations

from typing import Any

import torch

from tarazu.chat.model.attention_mask import dense_masks
from tarazu.chat.model.batching import PAD, ChatBatch
from tarazu.chat.model.forward import KVState
from tarazu.chat.model.loss import logits_of
from tarazu.chat.model.trainable import TrainableChatModel
from tarazu.engine.cuda_graphs.capture import (
    GraphPool,
    autocast_cache_disabled,
    capture,
    gc_paused,
)

STOP_CHECK_INTERVAL = 16  # steps between checks whether all answers have ended
WARMUP_STEPS = 3  # eager steps before the capture
CAPACITY_MULTIPLE = 64  # positions of the KV cache are rounded up to it


class DecodeState:
    """A batch of B answers: keys and values with space for all new tokens, and the tokens so far.

    It is also the cache that the model's layers write to: they call `update` and `get_seq_length`.

    Args:
        model: the model.
        batch: (B, 1) the last position of each prompt.
        past: the KV cache of the prompts, K positions; its tensors are copied.
        first_tokens: (B,) the first token of each answer.
        max_new_tokens: length of the longest answer.
    """

    def __init__(
        self,
        model: TrainableChatModel,
        batch: ChatBatch,
        past: KVState,
        first_tokens: torch.Tensor,
        max_new_tokens: int,
    ):
        self.model, self.base = model, model.base
        (lines, used), device = past.segments.shape, first_tokens.device
        capacity = -(-(used + max_new_tokens) // CAPACITY_MULTIPLE) * CAPACITY_MULTIPLE
        # Keys and values of each layer, (B, heads, capacity, head_dim).
        self.layers = [
            [_with_capacity(tensor, capacity) for tensor in (layer.keys, layer.values)]
            for layer in past.cache.layers
        ]
        # Segment and position of each key; unused positions are padding, which no query sees.
        self.segments = torch.full((lines, capacity), PAD, device=device)
        self.positions = torch.zeros((lines, capacity), dtype=torch.long, device=device)
        self.segments[:, :used], self.positions[:, :used] = past.segments, past.positions
        # The current token of each line, its segment and its position, (B, 1) each.
        self.ids, self.line_segments = first_tokens[:, None].clone(), batch.segments[:, -1:].clone()
        self.line_positions = batch.positions[:, -1:] + 1
        # Where the next key goes in the cache, and the next token in `tokens`.
        self.cache_index = torch.tensor([used], device=device)
        self.step_index = torch.tensor([0], device=device)
        self.tokens = torch.zeros((lines, max_new_tokens), dtype=torch.long, device=device)

    def step(self) -> tuple[torch.Tensor, ...]:
        """Store the current tokens and compute the next ones, all in place; returns nothing new."""
        self.tokens.index_copy_(1, self.step_index, self.ids)
        self.segments.index_copy_(1, self.cache_index, self.line_segments)
        self.positions.index_copy_(1, self.cache_index, self.line_positions)
        embeddings = self.base.get_input_embeddings()(self.ids)
        mask = dense_masks(
            self.base.config,
            embeddings.dtype,
            self.line_segments,
            self.segments,
            self.line_positions,
            self.positions,
        )
        out = self.base.get_decoder()(
            inputs_embeds=embeddings,
            attention_mask=mask,
            position_ids=self.line_positions,
            past_key_values=self,
            use_cache=True,
        )
        logits = logits_of(self.base, out.last_hidden_state[:, -1])
        self.ids.copy_(logits.argmax(-1)[:, None])
        for counter in (self.line_positions, self.cache_index, self.step_index):
            counter.add_(1)
        return ()

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store a layer's new keys and values; transformers calls this.

        Args:
            keys: (B, heads, 1, head_dim).
            values: as `keys`.
            layer: number of the layer.

        Returns:
            All keys and values of the layer, (B, heads, capacity, head_dim).
        """
        all_keys, all_values = self.layers[layer]
        all_keys.index_copy_(2, self.cache_index, keys.to(all_keys.dtype))
        all_values.index_copy_(2, self.cache_index, values.to(all_values.dtype))
        return all_keys, all_values

    def get_seq_length(self, *_: Any) -> int:
        """Number of key positions, unused ones included; transformers calls this."""
        return self.segments.shape[1]


def _with_capacity(tensor: torch.Tensor, capacity: int) -> torch.Tensor:
    """(B, heads, K, head_dim) copied into zeros of (B, heads, capacity, head_dim)."""
    padded = tensor.new_zeros((*tensor.shape[:2], capacity, tensor.shape[3]))
    padded[:, :, : tensor.shape[2]] = tensor
    return padded


@torch.no_grad()
def decode(state: DecodeState, stop: set[int], max_new_tokens: int) -> list[list[int]]:
    """Decode until every answer holds a stop token, or to `max_new_tokens`.

    Args:
        state: the batch of answers.
        stop: token ids that end an answer.
        max_new_tokens: length of the longest answer, as given to `state`.

    Returns:
        The tokens of each line, stop tokens and what follows them included.
    """
    advance = state.step
    on_gpu = state.ids.device.type == "cuda"
    graph_pool = _graph_pool(state.model) if on_gpu else None
    # With autocast's cache a captured step would read weights that were cast before the capture.
    with autocast_cache_disabled():
        for step in range(max_new_tokens):
            if on_gpu and step == WARMUP_STEPS:
                torch.cuda.synchronize()
                with gc_paused(collect_first=False):
                    advance, _ = capture(state.step, graph_pool)  # captured, not run
            advance()
            if step % STOP_CHECK_INTERVAL == STOP_CHECK_INTERVAL - 1:
                lines = state.tokens[:, : step + 1].tolist()
                if all(stop & set(line) for line in lines):
                    return lines
    return state.tokens.tolist()


def _graph_pool(model: TrainableChatModel) -> GraphPool:
    """Stream and memory of the captured step: those of the training pass, if it has any.

    Each stream has workspaces of its own (66 MiB on an H100), which stay as long as any pool does.
    A pool for each batch would pile them up while a model trains.
    """
    training = model.graphed_forward
    if training is None or training.graph_pool is None:
        return GraphPool()
    training.graph_pool.replay_counter.next()  # decoding overwrites what a pending pass has kept
    return training.graph_pool
