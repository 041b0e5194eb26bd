"""The caption decoders, one file each; `base` has their interface."""

from __future__ import annotations

from tarazu.captions.model.decoders.base import Decoder, State
from tarazu.captions.model.decoders.show_and_tell import ShowAndTellDecoder
from tarazu.captions.model.decoders.show_attend_tell import ShowAttendTellDecoder
from tarazu.captions.model.decoders.transformer import TransformerDecoder
from tarazu.captions.settings import CaptionMethod, ShowAndTell, ShowAttendTell, Transformer

__all__ = ["Decoder", "State", "make_decoder"]


def make_decoder(
    method: CaptionMethod, vocab_size: int, channels: int, num_positions: int
) -> Decoder:
    """Make the decoder of a method, newly initialised from torch's random state.

    Args:
        method: the method's settings.
        vocab_size: number of tokens.
        channels: channels of the encoder's feature map.
        num_positions: positions of the feature map.

    Raises:
        TypeError: the method has no decoder.
    """
    if isinstance(method, ShowAndTell):
        return ShowAndTellDecoder(method, vocab_size, channels)
    if isinstance(method, ShowAttendTell):
        return ShowAttendTellDecoder(method, vocab_size, channels)
    if isinstance(method, Transformer):
        return TransformerDecoder(method, vocab_size, channels, num_positions)
    raise TypeError(f"{type(method).__name__} has no decoder")
