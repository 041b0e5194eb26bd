"""Show, Attend and Tell (Xu et al. 2015, arXiv:1502.03044): soft attention over the feature map.

e_ti = w . tanh(W_h h_{t-1} + W_a a_i)                                   eq. 4
alpha_t = softmax(e_t)                                                   eq. 5
z_t = beta_t sum_i alpha_ti a_i,  beta_t = sigmoid(W_b h_{t-1})          eq. 6, section 4.2.1
h_t, c_t = LSTM([z_t ; E y_{t-1}], h_{t-1}, c_{t-1})                     eq. 1 to 3
p(y_t) = softmax(L_o (E y_{t-1} + L_h h_t + L_z z_t))                    eq. 7 (deep output)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tarazu.captions.model.decoders.attention_lstm import attention_lstm
from tarazu.captions.model.decoders.base import (
    Decoder,
    State,
    autocast_disabled,
    output_head,
    select_positions,
)
from tarazu.captions.settings import ShowAttendTell


class ShowAttendTellDecoder(Decoder):
    """An LSTM that attends to the map before every token.

    The state is (h, c, a, W_a a): (B, H) twice, features (B, P, D) and attention keys (B, P, A).
    D is the width of `project` where it is set, A that of `attention`.

    Args:
        settings: the method's settings.
        vocab_size: number of tokens.
        channels: channels of the feature map.
    """

    image_state_indices = (2, 3)
    fast_path = "recurrence with a hand-written backward pass"

    def __init__(self, settings: ShowAttendTell, vocab_size: int, channels: int):
        super().__init__()
        hidden_size, embedding_size = settings.hidden_size, settings.embedding
        self.embedding = nn.Embedding(vocab_size, embedding_size)
        self.project = None
        if settings.project:
            self.project = nn.Sequential(
                nn.Linear(channels, settings.project), nn.ReLU(), nn.Dropout(settings.dropout)
            )
            channels = settings.project
        # No bias where another bias or the softmax makes it redundant: it would not train.
        self.keys = nn.Linear(channels, settings.attention)  # W_a
        self.query = nn.Linear(hidden_size, settings.attention, bias=False)  # W_h
        self.score = nn.Linear(settings.attention, 1, bias=False)  # w
        self.gate = nn.Linear(hidden_size, 1) if settings.gate else None  # W_b
        self.init_state = nn.Linear(channels, 2 * hidden_size)
        lstm_inputs = channels + embedding_size
        self.mix = nn.Linear(lstm_inputs, settings.mix) if settings.mix else nn.Identity()
        self.cell = nn.LSTMCell(settings.mix or lstm_inputs, hidden_size)
        self.deep_output, self.tied = settings.deep_output, settings.tie_embeddings
        if self.deep_output:
            self.from_hidden = nn.Linear(hidden_size, embedding_size)  # L_h
            self.from_context = nn.Linear(channels, embedding_size, bias=False)  # L_z
        self.to_output, self.output = output_head(
            embedding_size if self.deep_output else hidden_size, self.embedding, self.tied
        )
        self.dropout, self.fast = nn.Dropout(settings.dropout), settings.fast

    def forward_teacher_forced(
        self,
        features: Tensor,
        tokens: Tensor,
        need_weights: bool = True,
        positions: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return logits (B, T, V) and weights (B, T, P), see `Decoder.forward_teacher_forced`.

        The recurrence is sequential, because h_{t-1} decides where to attend. The output layer
        runs once, over all positions.
        """
        state = self.start(features)
        embedded: Tensor = self.dropout(self.embedding(tokens))  # (B, T, E)
        unroll = self._unroll_fast if self.fast else self._unroll
        hidden, context, alphas = unroll(state, embedded)
        logits = self._logits(
            select_positions(embedded, positions),
            select_positions(hidden, positions),
            select_positions(context, positions),
        )
        return logits, alphas

    def start(self, features: Tensor) -> State:
        """Return the state of features (B, P, D): h, c (B, H), a (B, P, D) and W_a a (B, P, A)."""
        features = features.to(self.embedding.weight.dtype)
        if self.project is not None:
            features = self.project(features)
        mean = self.dropout(features.mean(1))  # (B, D)
        h, c = torch.tanh(self.init_state(mean)).chunk(2, 1)
        return h, c, features, self.keys(features)

    def step(self, state: State, token: Tensor) -> tuple[Tensor, State, Tensor]:
        """Return logits (B, V), the new state and attention weights (B, P) of token (B,)."""
        embedded = self.embedding(token)
        state, context, alpha = self._advance(state, embedded)
        return self._logits(embedded, state[0], context), state, alpha

    def _unroll(self, state: State, embedded: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The recurrence, differentiated by autograd.

        Args:
            state: the state before the first token.
            embedded: (B, T, E).

        Returns:
            h (B, T, H), z (B, T, D), alpha (B, T, P).
        """
        hidden, contexts, alphas = [], [], []
        for t in range(embedded.shape[1]):
            state, context, alpha = self._advance(state, embedded[:, t])
            hidden.append(state[0])
            contexts.append(context)
            alphas.append(alpha)
        return torch.stack(hidden, 1), torch.stack(contexts, 1), torch.stack(alphas, 1)

    def _advance(self, state: State, embedded: Tensor) -> tuple[State, Tensor, Tensor]:
        """One token: state and input (B, E) -> new state, z (B, D), alpha (B, P)."""
        h, c, features, keys = state
        energy = self.score(torch.tanh(keys + self.query(h).unsqueeze(1))).squeeze(2)  # eq. 4
        alpha = torch.softmax(energy.float(), 1)  # eq. 5
        z = torch.bmm(alpha.to(features.dtype).unsqueeze(1), features).squeeze(1)  # eq. 6
        if self.gate is not None:
            z = z * torch.sigmoid(self.gate(h))
        with autocast_disabled(z):  # eq. 1 to 3
            inputs = self.mix(torch.cat([z.float(), embedded], 1))
            h, c = self.cell(inputs, (h.float(), c.float()))
        return (h, c, features, keys), z, alpha

    def _unroll_fast(self, state: State, embedded: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`_unroll` by `attention_lstm`.

        The tokens' share of the LSTM's gates does not depend on h, so it is one product for all
        tokens, before the loop.
        """
        h, c, features, keys = (tensor.float() for tensor in state)
        with autocast_disabled(embedded):
            gate_weight, gate_bias = self.cell.weight_ih, self.cell.bias_ih + self.cell.bias_hh
            if isinstance(self.mix, nn.Linear):  # two linear maps in a row are one
                gate_bias = gate_bias + gate_weight @ self.mix.bias
                gate_weight = gate_weight @ self.mix.weight
            # The LSTM's input is [z ; E y]: split its weight in the same way.
            context_weight, token_weight = torch.split(
                gate_weight, [features.shape[2], embedded.shape[2]], 1
            )  # (4H, D), (4H, E)
            token_gates = nn.functional.linear(
                embedded.float().transpose(0, 1), token_weight, gate_bias
            )  # (T, B, 4H)
            # All products with h_{t-1} are one: query, recurrent gates and the gate beta.
            weights = [self.query.weight, self.cell.weight_hh]
            bias = gate_bias.new_zeros(keys.shape[2] + len(gate_bias))
            if self.gate is not None:
                weights.append(self.gate.weight)
                bias = torch.cat([bias, self.gate.bias])
            hidden, context, alphas = attention_lstm(
                token_gates,
                keys,
                features,
                h,
                c,
                torch.cat(weights),
                bias,
                self.score.weight.squeeze(0),
                context_weight,
            )
        return hidden.transpose(0, 1), context.transpose(0, 1), alphas.transpose(0, 1)

    def _logits(self, embedded: Tensor, h: Tensor, z: Tensor) -> Tensor:
        """Embedded tokens (..., E), h (..., H), z (..., D) -> logits (..., V); eq. 7."""
        if not self.deep_output:
            logits: Tensor = self.output(self.dropout(self.to_output(h)))
            return logits
        mixed = self.from_hidden(self.dropout(h)) + self.from_context(z)
        # With tied embeddings the input token would raise its own logit.
        logits = self.output(self.dropout(mixed if self.tied else embedded + mixed))
        return logits
