"""Tiny decoders of every kind, and a model whose next token follows a table."""

from __future__ import annotations

import torch

from tarazu.captions.model.decoders import make_decoder
from tarazu.captions.settings import ShowAndTell, ShowAttendTell, Transformer

KINDS = {
    "show_and_tell": ShowAndTell(embedding=12, hidden_size=16, dropout=0.3),
    "first_word": ShowAndTell(
        embedding=12, hidden_size=16, image_as="word", num_layers=2, dropout=0.0
    ),
    "both": ShowAndTell(embedding=12, hidden_size=16, image_as="both"),
    "show_attend_tell": ShowAttendTell(embedding=12, hidden_size=16, attention=10, dropout=0.3),
    "projected": ShowAttendTell(
        embedding=12, hidden_size=16, attention=10, project=14, dropout=0.3
    ),
    "plain_attention": ShowAttendTell(
        embedding=12, hidden_size=16, attention=10, gate=False, mix=14, deep_output=False
    ),
    "tied_teller": ShowAndTell(embedding=12, hidden_size=16, dropout=0.3, tie_embeddings=True),
    "tied_attention": ShowAttendTell(
        embedding=12, hidden_size=16, attention=10, tie_embeddings=True
    ),
    "tied_plain": ShowAttendTell(
        embedding=12, hidden_size=16, attention=10, deep_output=False, tie_embeddings=True
    ),
    "transformer": Transformer(hidden_size=16, num_layers=2, heads=2, feed_forward=24, dropout=0.3),
    "sinusoidal": Transformer(
        hidden_size=16,
        num_layers=1,
        heads=4,
        feed_forward=24,
        positions="sinusoidal",
        tie_embeddings=True,
    ),
}
VOCAB_SIZE, CHANNELS, POSITIONS = 11, 20, 6


def decoder(kind: str, seed: int = 0):
    torch.manual_seed(seed)
    return make_decoder(KINDS[kind], VOCAB_SIZE, CHANNELS, POSITIONS).eval()


class Table:
    """A model whose next token depends on the last two tokens only, by a table of logits."""

    image_state_indices = ()

    def __init__(self, vocab_size: int, seed: int):
        generator = torch.Generator().manual_seed(seed)
        self.logits = torch.randn(vocab_size, vocab_size, vocab_size, generator=generator) * 2

    def start(self, images):
        return (torch.ones(len(images), dtype=torch.long),)

    def step(self, state, token):
        return self.logits[state[0], token], (token,), None
