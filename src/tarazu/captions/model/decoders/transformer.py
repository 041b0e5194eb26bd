"""A Transformer decoder over the map (Vaswani et al. 2017, arXiv:1706.03762), normalised before each part.

    x = E y + position    each layer: x += self-attention(x, before and here)    x += cross-attention(x, map)    x += MLP(x)

The layer is our own because `nn.TransformerDecoderLayer` hides its cross-attention weights, which are what a heat map
shows. Masks follow PyTorch: True = may not be looked at.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from tarazu.captions.data.vocabulary import PAD
from tarazu.captions.model.decoders import Decoder, State, select_positions
from tarazu.captions.settings import Transformer

MAX_POSITIONS = 256


class Attention(nn.Module):
    """softmax(Q K' / sqrt(d)) V in several heads. K has no bias: softmax would not notice one."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.out = (
            nn.Linear(width, width),
            nn.Linear(width, width, bias=False),
            nn.Linear(width, width),
            nn.Linear(width, width),
        )
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        keys: Tensor,
        values: Tensor,
        ignore: Tensor | None = None,
        fused: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """x (B, T, W); keys and values (B, S, W), projected already; ignore (B or 1, 1, T, S) -> (B, T, W), weights
        (B, T, S). `fused` is PyTorch's own kernel, which tells no weights."""
        q, k, v = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for part in (self.q(x), keys, values)
        )
        if fused:
            share = self.dropout.p if self.dropout.training else 0.0
            mixed = scaled_dot_product_attention(
                q, k, v, None if ignore is None else ~ignore, share
            )
            return self.out(mixed.transpose(1, 2).flatten(2)), None
        energy = (q @ k.transpose(2, 3)).float() / math.sqrt(q.shape[-1])
        if ignore is not None:
            energy = energy.masked_fill(ignore, torch.finfo(energy.dtype).min)
        weights = torch.softmax(energy, -1)
        mixed = (self.dropout(weights).to(v.dtype) @ v).transpose(1, 2).flatten(2)
        return self.out(mixed), weights.mean(1)


class Layer(nn.Module):
    """Self-attention, cross-attention, MLP."""

    def __init__(self, settings: Transformer):
        super().__init__()
        width = settings.hidden_size
        self.own, self.cross = (
            Attention(width, settings.heads, settings.dropout) for _ in range(2)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.mlp = nn.Sequential(
            nn.Linear(width, settings.feed_forward),
            nn.GELU(),
            nn.Dropout(settings.dropout),
            nn.Linear(settings.feed_forward, width),
        )
        self.dropout = nn.Dropout(settings.dropout)

    def forward(
        self,
        x: Tensor,
        past: tuple[Tensor, Tensor] | None,
        memory: tuple[Tensor, Tensor],
        ignore: Tensor | None,
        fast: bool = False,
        attention: bool = True,
    ) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor | None]:
        """x (B, T, W), keys and values of earlier words or None, those of the map -> x, keys and values so far,
        weights (B, T, P) if `attention` is wanted."""
        y = self.norms[0](x)
        keys, values = self.own.k(y), self.own.v(y)
        if past is not None:
            keys, values = torch.cat([past[0], keys], 1), torch.cat([past[1], values], 1)
        x = x + self.dropout(self.own(y, keys, values, ignore, fast)[0])
        looked, weights = self.cross(self.norms[1](x), *memory, fused=fast and not attention)
        x = x + self.dropout(looked)
        return x + self.dropout(self.mlp(self.norms[2](x))), (keys, values), weights


class TransformerDecoder(Decoder):
    image_state_indices = (0, 1)
    fast_path = "fused attention"

    def __init__(self, settings: Transformer, words: int, channels: int, places: int):
        super().__init__()
        width = settings.hidden_size
        self.embedding = nn.Embedding(words, width)
        nn.init.normal_(self.embedding.weight, std=width**-0.5)
        if settings.positions == "learned":
            self.positions = nn.Parameter(torch.randn(MAX_POSITIONS, width) * 0.02)
        else:
            self.register_buffer("positions", sinusoids(MAX_POSITIONS, width))
        self.adapt = nn.Sequential(
            nn.Linear(channels, width), nn.LayerNorm(width)
        )  # from the encoder's width to ours
        self.places = nn.Parameter(torch.randn(places, width) * 0.02)
        self.layers = nn.ModuleList(Layer(settings) for _ in range(settings.num_layers))
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(settings.dropout)
        self.output = nn.Linear(width, words)
        self.fast = settings.fast
        if settings.tie_embeddings:
            self.output.weight = self.embedding.weight

    def forward_teacher_forced(
        self, features: Tensor, tokens: Tensor, attention: bool = True, at: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        memory = self._memory(features)
        x = self._words(tokens, self.positions[: tokens.shape[1]])
        ignore = masks(tokens)
        for layer, looked in zip(self.layers, memory, strict=True):
            x, _, weights = layer(x, None, looked, ignore, self.fast, attention)
        return self.output(self.norm(select_positions(x, at))), weights

    def start(self, features: Tensor) -> State:
        """The state is (keys, values of the map, keys, values of the words so far), (B, layers, P or t, width)."""
        memory = self._memory(features)
        keys, values = (torch.stack([pair[i] for pair in memory], 1) for i in (0, 1))
        nothing = keys[:, :, :0]
        return keys, values, nothing, nothing

    def step(self, state: State, token: Tensor) -> tuple[Tensor, State, Tensor]:
        map_keys, map_values, keys, values = state
        place = keys.shape[2]
        x = self._words(
            token.unsqueeze(1), self.positions[place]
        )  # not a slice: in an exported graph nobody knows its length
        grown = []
        for i, layer in enumerate(self.layers):
            x, past, weights = layer(
                x, (keys[:, i], values[:, i]), (map_keys[:, i], map_values[:, i]), None, self.fast
            )
            grown.append(past)
        keys, values = (torch.stack([pair[i] for pair in grown], 1) for i in (0, 1))
        return self.output(self.norm(x))[:, 0], (map_keys, map_values, keys, values), weights[:, 0]

    def _memory(self, features: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Each layer's keys and values of the map, computed once."""
        memory = self.dropout(self.adapt(features.to(self.places.dtype)) + self.places)
        return [(layer.cross.k(memory), layer.cross.v(memory)) for layer in self.layers]

    def _words(self, tokens: Tensor, positions: Tensor) -> Tensor:
        return self.dropout(
            self.embedding(tokens) * math.sqrt(self.embedding.embedding_dim) + positions
        )


def masks(tokens: Tensor) -> Tensor:
    """tokens (B, T) -> (B, 1, T, T), True where row t may not look: later words, and padding."""
    length = tokens.shape[1]
    later = torch.ones(length, length, dtype=torch.bool, device=tokens.device).triu(1)
    return later | padding_mask(tokens)[:, None, None, :]


def padding_mask(tokens: Tensor) -> Tensor:
    """True on `<pad>`, as the tokenizer's mask is asked to be."""
    return tokens == PAD


def sinusoids(length: int, width: int) -> Tensor:
    """The paper's positions: sine and cosine of wavelengths from 2 pi to 20,000 pi."""
    angles = torch.arange(length)[:, None] / 10000 ** (torch.arange(0, width, 2) / width)
    return torch.stack([angles.sin(), angles.cos()], 2).flatten(1)[:, :width]
