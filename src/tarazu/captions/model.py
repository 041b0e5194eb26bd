"""The whole model, from pixels to words: an encoder and a decoder in one module."""

from __future__ import annotations

from torch import Tensor, nn

from tarazu.captions.decoders import Decoder, State
from tarazu.captions.encoders import EfficientNet


class ImageCaptioningModel(nn.Module):
    """Encoder and decoder, end to end.

    Pictures may come as pixels (B, S, S, 3), 0..255, or, where the encoder is frozen, as the features (B, P, D) that
    it gave them once: the two lead to the same words.
    """

    def __init__(self, encoder: EfficientNet, decoder: Decoder):
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def see(self, pictures: Tensor) -> Tensor:
        """Pixels or features -> features (B, P, D)."""
        return self.encoder(pictures) if pictures.ndim == 4 else pictures

    def forward(self, pictures: Tensor, tokens: Tensor) -> Tensor:
        """tokens (B, T), from <sos> on -> logits (B, T, V)."""
        return self.decoder(self.see(pictures), tokens)

    def teach(self, pictures: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        """As `forward`, with the attention (B, T, P) where the decoder has any."""
        return self.decoder.teach(self.see(pictures), tokens)

    def start(self, pictures: Tensor) -> State:
        return self.decoder.start(self.see(pictures))

    def step(self, state: State, token: Tensor) -> tuple[Tensor, State, Tensor | None]:
        return self.decoder.step(state, token)
