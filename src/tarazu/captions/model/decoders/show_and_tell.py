"""Show and Tell (Vinyals et al. 2015, arXiv:1411.4555): the picture is one vector, and an LSTM tells it.

    v = mean of the map    h0, c0 = tanh(W v)    h_t, c_t = LSTM(E y_{t-1}, h_{t-1}, c_{t-1})    p(y_t) = softmax(W_o h_t)

The paper feeds v as the first input instead (`image_as: word`); "both" does the two.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tarazu.captions.model.decoders import (
    Decoder,
    State,
    full_precision,
    output_head,
    select_positions,
)
from tarazu.captions.settings import ShowAndTell


class ShowAndTellDecoder(Decoder):
    input_kind = "pooled"
    fast_path = "torch's LSTM"

    def __init__(self, settings: ShowAndTell, words: int, channels: int, places: int):
        super().__init__()
        self.layers, self.hidden, self.image_as = (
            settings.num_layers,
            settings.hidden_size,
            settings.image_as,
        )
        self.embedding = nn.Embedding(words, settings.embedding)
        self.lstm = nn.LSTM(
            settings.embedding,
            settings.hidden_size,
            settings.num_layers,
            batch_first=True,
            dropout=settings.dropout if settings.num_layers > 1 else 0.0,
        )
        if self.image_as != "word":
            self.first = nn.Linear(channels, 2 * settings.num_layers * settings.hidden_size)
        if self.image_as != "state":
            self.image = nn.Linear(channels, settings.embedding)
        self.dropout, self.fast = (
            nn.Dropout(settings.dropout),
            settings.fast,
        )  # cuDNN's LSTM is fast already
        self.narrow, self.output = output_head(
            settings.hidden_size, self.embedding, settings.tie_embeddings
        )

    def forward_teacher_forced(
        self, features: Tensor, tokens: Tensor, attention: bool = True, at: Tensor | None = None
    ) -> tuple[Tensor, None]:
        h, c = self.start(features)
        words = self.dropout(self.embedding(tokens))
        with full_precision(words):
            out, _ = self.lstm(words, _layers_first(h, c))
        return self.output(self.dropout(self.narrow(select_positions(out, at)))), None

    def start(self, features: Tensor) -> State:
        """The state is (h, c), each (B, layers, hidden)."""
        vector = self.dropout(features.to(self.embedding.weight.dtype).mean(1))
        if self.image_as == "word":
            h = c = vector.new_zeros(len(vector), self.layers, self.hidden)
        else:
            h, c = torch.tanh(self.first(vector)).view(-1, 2, self.layers, self.hidden).unbind(1)
        if self.image_as == "state":
            return h, c
        return self._advance((h, c), self.image(vector))[1]

    def step(self, state: State, token: Tensor) -> tuple[Tensor, State, None]:
        out, state = self._advance(state, self.embedding(token))
        return self.output(self.narrow(out)), state, None

    def _advance(self, state: State, x: Tensor) -> tuple[Tensor, State]:
        with full_precision(x):
            out, (h, c) = self.lstm(x.float().unsqueeze(1), _layers_first(*state))
        return out[:, 0], (h.transpose(0, 1), c.transpose(0, 1))


def _layers_first(h: Tensor, c: Tensor) -> State:
    """nn.LSTM wants (layers, B, hidden)."""
    return h.transpose(0, 1).contiguous().float(), c.transpose(0, 1).contiguous().float()
