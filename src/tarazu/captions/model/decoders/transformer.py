"""A Transformer decoder over the feature map (Vaswani et al. 2017, arXiv:1706.03762), pre-norm.

    x = sqrt(W) E y + position
    in each layer:  x += self-attention(norm(x)), causal
                    x += cross-attention(norm(x), feature map)
                    x += MLP(norm(x))                                        eq. 2, with GELU
    Attention(Q, K, V) = softmax(Q K' / sqrt(d)) V                           eq. 1

The layer is not `nn.TransformerDecoderLayer`, which hides its cross-attention weights: a heat map
shows them. Masks follow PyTorch: True means that a position must not be attended to.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from tarazu.captions.data.vocabulary import PAD
from tarazu.captions.model.decoders.base import Decoder, State, select_positions
from tarazu.captions.settings import Transformer

MAX_TOKENS = 256
KeysValues = tuple[Tensor, Tensor]  # each (B, S, W)


class Attention(nn.Module):
    """Multi-head attention, eq. 1. The keys have no bias: the softmax would cancel it.

    Args:
        width: W, the width of the model.
        heads: number of heads.
        dropout: probability on the attention weights.
    """

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(width, width, bias=False)
        self.v = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        keys_values: KeysValues,
        mask: Tensor | None = None,
        fused: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend from x to the keys.

        Args:
            x: (B, T, W).
            keys_values: projected keys and values, (B, S, W).
            mask: (B or 1, 1, T, S), True where a key must not be attended to.
            fused: use PyTorch's fused kernel, which returns no weights.

        Returns:
            (B, T, W), and the weights (B, T, S), the mean over the heads, or None if fused.
        """
        q, k, v = (
            projected.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for projected in (self.q(x), *keys_values)
        )  # (B, heads, T or S, d)
        if fused:
            dropout = self.dropout.p if self.dropout.training else 0.0
            allowed = None if mask is None else ~mask  # the kernel's mask is True where allowed
            mixed = scaled_dot_product_attention(q, k, v, allowed, dropout)
            return self.out(mixed.transpose(1, 2).flatten(2)), None
        energy = (q @ k.transpose(2, 3)).float() / math.sqrt(q.shape[-1])  # (B, heads, T, S)
        if mask is not None:
            energy = energy.masked_fill(mask, torch.finfo(energy.dtype).min)
        weights = torch.softmax(energy, -1)
        mixed = (self.dropout(weights).to(v.dtype) @ v).transpose(1, 2).flatten(2)
        return self.out(mixed), weights.mean(1)


class Layer(nn.Module):
    """Self-attention, cross-attention and an MLP, each with a residual connection."""

    def __init__(self, settings: Transformer):
        super().__init__()
        width, dropout = settings.hidden_size, settings.dropout
        self.self_attention = Attention(width, settings.heads, dropout)
        self.cross_attention = Attention(width, settings.heads, dropout)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.mlp = nn.Sequential(
            nn.Linear(width, settings.feed_forward),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(settings.feed_forward, width),
        )
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        past: KeysValues | None,
        memory: KeysValues,
        mask: Tensor | None,
        fast: bool = False,
        need_weights: bool = True,
    ) -> tuple[Tensor, KeysValues, Tensor | None]:
        """Run the layer on new tokens.

        Args:
            x: (B, T, W).
            past: keys and values of earlier tokens, (B, S, W), or None.
            memory: keys and values of the feature map, (B, P, W).
            mask: (B or 1, 1, T, S + T), True where a token must not be attended to, or None.
            fast: use fused attention where no weights are needed.
            need_weights: return the cross-attention weights.

        Returns:
            x (B, T, W), keys and values of all tokens so far, weights (B, T, P) or None.
        """
        y = self.norms[0](x)
        keys, values = self.self_attention.k(y), self.self_attention.v(y)
        if past is not None:
            keys, values = torch.cat([past[0], keys], 1), torch.cat([past[1], values], 1)
        x = x + self.dropout(self.self_attention(y, (keys, values), mask, fast)[0])
        attended, weights = self.cross_attention(
            self.norms[1](x), memory, fused=fast and not need_weights
        )
        x = x + self.dropout(attended)
        return x + self.dropout(self.mlp(self.norms[2](x))), (keys, values), weights


class TransformerDecoder(Decoder):
    """The decoder. The state is keys and values of the map, then of the tokens so far.

    Each is (B, num_layers, P or t, W).

    Args:
        settings: the method's settings.
        vocab_size: number of tokens.
        channels: channels of the feature map.
        num_positions: positions of the feature map.
    """

    image_state_indices = (0, 1)
    fast_path = "fused attention"

    def __init__(self, settings: Transformer, vocab_size: int, channels: int, num_positions: int):
        super().__init__()
        width = settings.hidden_size
        self.embedding = nn.Embedding(vocab_size, width)
        nn.init.normal_(self.embedding.weight, std=width**-0.5)
        self.positions: Tensor
        if settings.positions == "learned":
            self.positions = nn.Parameter(torch.randn(MAX_TOKENS, width) * 0.02)
        else:
            self.register_buffer("positions", sinusoids(MAX_TOKENS, width))
        self.input_projection = nn.Sequential(nn.Linear(channels, width), nn.LayerNorm(width))
        self.map_positions = nn.Parameter(torch.randn(num_positions, width) * 0.02)
        self.layers = nn.ModuleList(Layer(settings) for _ in range(settings.num_layers))
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(settings.dropout)
        self.output = nn.Linear(width, vocab_size)
        self.fast = settings.fast
        if settings.tie_embeddings:
            self.output.weight = self.embedding.weight

    def forward_teacher_forced(
        self,
        features: Tensor,
        tokens: Tensor,
        need_weights: bool = True,
        positions: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Return logits (B, T, V) and weights (B, T, P), see `Decoder.forward_teacher_forced`."""
        memory = self._memory(features)
        x = self._embed(tokens, self.positions[: tokens.shape[1]])  # (B, T, W)
        mask = causal_mask(tokens)
        weights: Tensor | None = None
        for layer, layer_memory in zip(self.layers, memory, strict=True):
            x, _, weights = layer(x, None, layer_memory, mask, self.fast, need_weights)
        # The last layer's weights are returned.
        return self.output(self.norm(select_positions(x, positions))), weights

    def start(self, features: Tensor) -> State:
        """Return the state of features (B, P, D): keys and values (B, num_layers, P or 0, W)."""
        keys, values = _stack_layers(self._memory(features))
        no_tokens = keys[:, :, :0]
        return keys, values, no_tokens, no_tokens

    def step(self, state: State, token: Tensor) -> tuple[Tensor, State, Tensor | None]:
        """Return logits (B, V), the new state and attention weights (B, P) of token (B,)."""
        map_keys, map_values, keys, values = state
        # An index and not a slice: an exported graph does not know the length of a slice here.
        x = self._embed(token.unsqueeze(1), self.positions[keys.shape[2]])  # (B, 1, W)
        keys_values = []
        for i, layer in enumerate(self.layers):
            past, memory = (keys[:, i], values[:, i]), (map_keys[:, i], map_values[:, i])
            x, layer_keys_values, weights = layer(x, past, memory, None, self.fast)
            keys_values.append(layer_keys_values)
        new_state = (map_keys, map_values, *_stack_layers(keys_values))
        return self.output(self.norm(x))[:, 0], new_state, weights[:, 0]

    def _memory(self, features: Tensor) -> list[KeysValues]:
        """Each layer's keys and values of the feature map (B, P, D), computed once."""
        projected = self.input_projection(features.to(self.map_positions.dtype))
        memory = self.dropout(projected + self.map_positions)  # (B, P, W)
        attentions = [cast(Layer, layer).cross_attention for layer in self.layers]
        return [(attention.k(memory), attention.v(memory)) for attention in attentions]

    def _embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Tokens (B, T) and position embeddings (T, W) or (W,) -> (B, T, W)."""
        scale = math.sqrt(self.embedding.embedding_dim)
        embedded: Tensor = self.dropout(self.embedding(tokens) * scale + positions)
        return embedded


def _stack_layers(keys_values: list[KeysValues]) -> tuple[Tensor, Tensor]:
    """Keys and values by layer, (B, S, W) each -> keys and values (B, num_layers, S, W)."""
    keys, values = zip(*keys_values, strict=True)
    return torch.stack(keys, 1), torch.stack(values, 1)


def causal_mask(tokens: Tensor) -> Tensor:
    """Return (B, 1, T, T) of tokens (B, T): True on later positions and on padding."""
    length = tokens.shape[1]
    later = torch.ones(length, length, dtype=torch.bool, device=tokens.device).triu(1)
    return later | padding_mask(tokens)[:, None, None, :]


def padding_mask(tokens: Tensor) -> Tensor:
    """Return (B, T), True where a token is `<pad>`."""
    return tokens == PAD


def sinusoids(length: int, width: int) -> Tensor:
    """Return the paper's position embeddings, (length, width); section 3.5.

    Sines and cosines with wavelengths from 2 pi to 20,000 pi, interleaved.
    """
    angles = torch.arange(length)[:, None] / 10000 ** (torch.arange(0, width, 2) / width)
    return torch.stack([angles.sin(), angles.cos()], 2).flatten(1)[:, :width]
