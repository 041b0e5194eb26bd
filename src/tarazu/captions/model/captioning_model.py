"""The whole model, from pixels to words: an encoder and a decoder in one module."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tarazu.captions.encoder.efficientnet import EfficientNet
from tarazu.captions.model.decoders import Decoder, State

MAX_IMAGES_PER_PASS = 128  # pictures, where no gradient is wanted: the first layers' maps are large


class ImageCaptioningModel(nn.Module):
    """Encoder and decoder, end to end.

    Pictures may come as pixels (B, S, S, 3), 0..255, or, where the encoder is frozen, as the features (B, P, D) that
    it gave them once: the two lead to the same words. In training, `feature_dropout` hides whole channels of the
    features, so that no single one can give a training picture away. With `half` a GPU looks in bfloat16.
    """

    def __init__(
        self,
        encoder: EfficientNet,
        decoder: Decoder,
        feature_dropout: float = 0.0,
        half: bool = False,
    ):
        super().__init__()
        self.encoder, self.decoder, self.hide, self.half = (
            encoder,
            decoder,
            nn.Dropout(feature_dropout),
            half,
        )

    def encode_images(self, pictures: Tensor) -> Tensor:
        """Pixels or features -> features (B, P, D)."""
        features = self.encode_pixels(pictures) if pictures.ndim == 4 else pictures
        if self.hide.training and self.hide.p:
            features = features * self.hide(features.new_ones(len(features), 1, features.shape[2]))
        return features

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """Pixels -> features, nothing hidden."""
        if len(pixels) > MAX_IMAGES_PER_PASS and not torch.is_grad_enabled():
            return torch.cat(
                [self.encode_pixels(some) for some in pixels.split(MAX_IMAGES_PER_PASS)]
            )
        if not (self.half and pixels.is_cuda):
            return self.encoder(pixels)
        with torch.autocast("cuda", torch.bfloat16):
            return self.encoder(pixels).float()

    def forward(self, pictures: Tensor, tokens: Tensor) -> Tensor:
        """tokens (B, T), from <sos> on -> logits (B, T, V)."""
        return self.decoder(self.encode_images(pictures), tokens)

    def forward_teacher_forced(
        self,
        pictures: Tensor,
        tokens: Tensor,
        attention: bool = True,
        at: Tensor | None = None,
        rows: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """As `Decoder.forward_teacher_forced`, from pictures. `rows` (B,) names the picture of each row of tokens, where several share one:
        it is looked at once."""
        features = self.encode_images(pictures)
        return self.decoder.forward_teacher_forced(
            features if rows is None else features.index_select(0, rows), tokens, attention, at
        )

    @property
    def image_state_indices(self) -> tuple[int, ...]:
        return self.decoder.image_state_indices

    def start(self, pictures: Tensor) -> State:
        return self.decoder.start(self.encode_images(pictures))

    def step(self, state: State, token: Tensor) -> tuple[Tensor, State, Tensor | None]:
        return self.decoder.step(state, token)
