"""Show and Tell (Vinyals et al. 2015, arXiv:1411.4555): an LSTM decodes one image vector.

    v = mean of the feature map       h_0, c_0 = tanh(W v)
    h_t, c_t = LSTM(E y_{t-1}, h_{t-1}, c_{t-1})        p(y_t) = softmax(W_o h_t)     eq. 11, 12

The paper feeds v as the first input instead, x_{-1} in eq. 10 (`image_as: word`); `both` does both.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tarazu.captions.model.decoders.base import (
    Decoder,
    State,
    autocast_disabled,
    output_head,
    select_positions,
)
from tarazu.captions.settings import ShowAndTell


class ShowAndTellDecoder(Decoder):
    """An LSTM over the tokens. The state is (h, c), each (B, num_layers, hidden_size).

    Args:
        settings: the method's settings.
        vocab_size: number of tokens.
        channels: channels of the feature map.
    """

    input_kind = "pooled"
    fast_path = "torch's LSTM"  # cuDNN's is fast, so `fast` changes nothing here

    def __init__(self, settings: ShowAndTell, vocab_size: int, channels: int):
        super().__init__()
        self.num_layers, self.hidden_size = settings.num_layers, settings.hidden_size
        self.image_as, self.fast = settings.image_as, settings.fast
        self.embedding = nn.Embedding(vocab_size, settings.embedding)
        self.lstm = nn.LSTM(
            settings.embedding,
            settings.hidden_size,
            settings.num_layers,
            batch_first=True,
            dropout=settings.dropout if settings.num_layers > 1 else 0.0,
        )
        if self.image_as != "word":
            self.init_state = nn.Linear(channels, 2 * settings.num_layers * settings.hidden_size)
        if self.image_as != "state":
            self.image_embedding = nn.Linear(channels, settings.embedding)
        self.dropout = nn.Dropout(settings.dropout)
        self.to_output, self.output = output_head(
            settings.hidden_size, self.embedding, settings.tie_embeddings
        )

    def forward_teacher_forced(
        self,
        features: Tensor,
        tokens: Tensor,
        need_weights: bool = True,
        positions: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        """Return logits (B, T, V) and None, see `Decoder.forward_teacher_forced`."""
        h, c = self.start(features)
        inputs = self.dropout(self.embedding(tokens))  # (B, T, E)
        with autocast_disabled(inputs):
            hidden, _ = self.lstm(inputs, _layers_first(h, c))  # (B, T, H)
        selected = self.to_output(select_positions(hidden, positions))
        return self.output(self.dropout(selected)), None

    def start(self, features: Tensor) -> State:
        """Return the state of features (B, P, D): (h, c), each (B, num_layers, H)."""
        image: Tensor = self.dropout(features.to(self.embedding.weight.dtype).mean(1))  # (B, D)
        if self.image_as == "word":
            h = c = image.new_zeros(len(image), self.num_layers, self.hidden_size)
        else:
            state = torch.tanh(self.init_state(image))  # (B, 2 * L * H)
            h, c = state.view(-1, 2, self.num_layers, self.hidden_size).unbind(1)
        if self.image_as == "state":
            return h, c
        return self._advance((h, c), self.image_embedding(image))[1]  # x_{-1}, eq. 10

    def step(self, state: State, token: Tensor) -> tuple[Tensor, State, None]:
        """Return logits (B, V), the new state and None of token (B,)."""
        hidden, state = self._advance(state, self.embedding(token))
        return self.output(self.to_output(hidden)), state, None

    def _advance(self, state: State, x: Tensor) -> tuple[Tensor, State]:
        """One step of the LSTM: state and input (B, E) -> output (B, H) and the new state."""
        h, c = state
        with autocast_disabled(x):
            out, (h, c) = self.lstm(x.float().unsqueeze(1), _layers_first(h, c))  # out (B, 1, H)
        return out[:, 0], (h.transpose(0, 1), c.transpose(0, 1))


def _layers_first(h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """The state as `nn.LSTM` takes it: (B, L, H) -> (L, B, H), float32."""
    return h.transpose(0, 1).contiguous().float(), c.transpose(0, 1).contiguous().float()
