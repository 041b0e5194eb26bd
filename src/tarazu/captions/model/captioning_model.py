"""The full model, from pixels to logits: an encoder and a decoder in one module."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tarazu.captions.encoder.efficientnet import EfficientNet
from tarazu.captions.model.decoders import Decoder, State

MAX_IMAGES_PER_PASS = 128  # without gradients: the feature maps of the first layers are large


class ImageCaptioningModel(nn.Module):
    """An encoder and a decoder.

    Images come as pixels (B, S, S, 3), 0..255, or, for a frozen encoder, as its cached features
    (B, P, D). Both give the same captions.

    Args:
        encoder: pixels to features.
        decoder: features to logits.
        feature_dropout: probability that training zeroes a full channel of an image's features, so
            that no single channel identifies a training image.
        bfloat16: run the encoder in bfloat16 on a GPU.
    """

    def __init__(
        self,
        encoder: EfficientNet,
        decoder: Decoder,
        feature_dropout: float = 0.0,
        bfloat16: bool = False,
    ):
        super().__init__()
        self.encoder, self.decoder, self.bfloat16 = encoder, decoder, bfloat16
        self.feature_dropout = nn.Dropout(feature_dropout)

    def encode_images(self, images: Tensor) -> Tensor:
        """Return the decoder's input.

        Args:
            images: pixels (B, S, S, 3) or features (B, P, D).

        Returns:
            Features (B, P, D), after feature dropout.
        """
        features = self.encode_pixels(images) if images.ndim == 4 else images
        if self.feature_dropout.training and self.feature_dropout.p:
            # One draw per image and channel, the same at every position.
            ones = features.new_ones(len(features), 1, features.shape[2])
            features = features * self.feature_dropout(ones)
        return features

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """Return features (B, P, D) of pixels (B, S, S, 3), without dropout."""
        if len(pixels) > MAX_IMAGES_PER_PASS and not torch.is_grad_enabled():
            return torch.cat(
                [self.encode_pixels(part) for part in pixels.split(MAX_IMAGES_PER_PASS)]
            )
        if not (self.bfloat16 and pixels.is_cuda):
            return self.encoder(pixels)
        with torch.autocast("cuda", torch.bfloat16):
            return self.encoder(pixels).float()

    def forward(self, images: Tensor, tokens: Tensor) -> Tensor:
        """Return logits (B, T, V) of images and tokens (B, T), from `<sos>` on."""
        return self.decoder(self.encode_images(images), tokens)

    def forward_teacher_forced(
        self,
        images: Tensor,
        tokens: Tensor,
        need_weights: bool = True,
        positions: Tensor | None = None,
        image_index: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Compute the logits of every position, given the tokens before it.

        Args:
            images: pixels (B, S, S, 3) or features (B, P, D).
            tokens: (B, T), from `<sos>` on.
            need_weights: return attention weights.
            positions: (n,) indices into the flattened (B * T,); only their logits are computed.
            image_index: (B,), the image of each row of tokens, where rows share an image. There may
                be fewer images than rows then; each is encoded once.

        Returns:
            Logits (B, T, V), or (n, V) with `positions`, and attention weights (B, T, P) or None.
        """
        features = self.encode_images(images)
        if image_index is not None:
            features = features.index_select(0, image_index)
        return self.decoder.forward_teacher_forced(features, tokens, need_weights, positions)

    @property
    def image_state_indices(self) -> tuple[int, ...]:
        """Indices of the state's tensors that depend on the image alone."""
        return self.decoder.image_state_indices

    def start(self, images: Tensor) -> State:
        """Return the state before the first token of images: pixels (B, S, S, 3) or (B, P, D)."""
        return self.decoder.start(self.encode_images(images))

    def step(self, state: State, token: Tensor) -> tuple[Tensor, State, Tensor | None]:
        """Decode one token (B,): logits (B, V), new state, attention weights (B, P) or None."""
        return self.decoder.step(state, token)
