"""Show, Attend and Tell (Xu et al. 2015, arXiv:1502.03044): soft attention over the map, anew for every word.

e_i = w . tanh(W_h h_{t-1} + W_a a_i)    alpha = softmax(e)    z_t = sum_i alpha_i a_i  (gate: z_t *= sigmoid(W_b h_{t-1}))
h_t, c_t = LSTM([z_t ; E y_{t-1}], ...)    p(y_t) = softmax(L_o (E y_{t-1} + L_h h_t + L_z z_t))     (deep output)
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
from tarazu.captions.model.decoders.attention_lstm import AttentionLSTMFunction
from tarazu.captions.settings import ShowAttendTell


class ShowAttendTellDecoder(Decoder):
    image_state_indices = (2, 3)
    fast_path = "recurrence with a backward pass by hand"

    def __init__(self, settings: ShowAttendTell, words: int, channels: int, places: int):
        super().__init__()
        hidden, embedding = settings.hidden_size, settings.embedding
        self.embedding = nn.Embedding(words, embedding)
        self.project = None
        if settings.project:
            self.project = nn.Sequential(
                nn.Linear(channels, settings.project), nn.ReLU(), nn.Dropout(settings.dropout)
            )
            channels = settings.project
        self.keys = nn.Linear(channels, settings.attention)
        self.query = nn.Linear(
            hidden, settings.attention, bias=False
        )  # the keys have a bias already
        self.score = nn.Linear(settings.attention, 1, bias=False)  # softmax would not notice one
        self.gate = nn.Linear(hidden, 1) if settings.gate else None
        self.first = nn.Linear(channels, 2 * hidden)
        self.mix = nn.Linear(channels + embedding, settings.mix) if settings.mix else nn.Identity()
        self.cell = nn.LSTMCell(settings.mix or channels + embedding, hidden)
        self.deep, self.tied = settings.deep_output, settings.tie_embeddings
        if self.deep:
            self.from_hidden = nn.Linear(hidden, embedding)
            self.from_context = nn.Linear(channels, embedding, bias=False)
        self.narrow, self.output = output_head(
            embedding if self.deep else hidden, self.embedding, self.tied
        )
        self.dropout, self.fast = nn.Dropout(settings.dropout), settings.fast

    def forward_teacher_forced(
        self, features: Tensor, tokens: Tensor, attention: bool = True, at: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Word by word, as h_{t-1} decides where to look; only the output layer can wait for all words at once."""
        state, words = self.start(features), self.dropout(self.embedding(tokens))
        hs, zs, alphas = (self._by_hand if self.fast else self._by_autograd)(state, words)
        return self._words(
            select_positions(words, at), select_positions(hs, at), select_positions(zs, at)
        ), alphas

    def _by_autograd(self, state: State, words: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The state before the first word, words (B, T, E) -> h (B, T, H), z (B, T, D), alpha (B, T, P)."""
        found = []
        for t in range(words.shape[1]):
            state, z, alpha = self._advance(state, words[:, t])
            found.append((state[0], z, alpha))
        hs, zs, alphas = zip(*found, strict=True)
        return torch.stack(hs, 1), torch.stack(zs, 1), torch.stack(alphas, 1)

    def _by_hand(self, state: State, words: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same, with what the words add to the LSTM's gates computed for all of them before the loop."""
        h, c, features, keys = (tensor.float() for tensor in state)
        with full_precision(words):
            to_gates, biases = self.cell.weight_ih, self.cell.bias_ih + self.cell.bias_hh
            if isinstance(self.mix, nn.Linear):  # two linear maps in a row are one
                to_gates, biases = to_gates @ self.mix.weight, biases + to_gates @ self.mix.bias
            context, from_word = to_gates.split([features.shape[2], words.shape[2]], 1)
            gates = nn.functional.linear(words.float().transpose(0, 1), from_word, biases)
            weights, zeros = (
                [self.query.weight, self.cell.weight_hh],
                biases.new_zeros(keys.shape[2] + len(biases)),
            )
            bias = zeros if self.gate is None else torch.cat([zeros, self.gate.bias])
            weight = torch.cat(weights if self.gate is None else [*weights, self.gate.weight])
            score = self.score.weight.squeeze(0)
            found = AttentionLSTMFunction.apply(
                gates, keys, features, h, c, weight, bias, score, context
            )
        hs, zs, alphas = (tensor.transpose(0, 1) for tensor in found)
        return hs, zs, alphas

    def start(self, features: Tensor) -> State:
        """The state is (h, c, a, W_a a): (B, hidden) twice, (B, P, D or project), (B, P, attention)."""
        features = features.to(self.embedding.weight.dtype)
        if self.project is not None:
            features = self.project(features)
        h, c = torch.tanh(self.first(self.dropout(features.mean(1)))).chunk(2, 1)
        return h, c, features, self.keys(features)

    def step(self, state: State, token: Tensor) -> tuple[Tensor, State, Tensor]:
        word = self.embedding(token)
        state, z, alpha = self._advance(state, word)
        return self._words(word, state[0], z), state, alpha

    def _advance(self, state: State, word: Tensor) -> tuple[State, Tensor, Tensor]:
        h, c, features, keys = state
        energy = self.score(torch.tanh(keys + self.query(h).unsqueeze(1))).squeeze(2)
        alpha = torch.softmax(energy.float(), 1)
        z = torch.bmm(alpha.to(features.dtype).unsqueeze(1), features).squeeze(1)
        if self.gate is not None:
            z = z * torch.sigmoid(self.gate(h))
        with full_precision(z):
            h, c = self.cell(self.mix(torch.cat([z.float(), word], 1)), (h.float(), c.float()))
        return (h, c, features, keys), z, alpha

    def _words(self, word: Tensor, h: Tensor, z: Tensor) -> Tensor:
        if not self.deep:
            return self.output(self.dropout(self.narrow(h)))
        found = self.from_hidden(self.dropout(h)) + self.from_context(z)
        return self.output(self.dropout(found if self.tied else word + found))
