"""Sampling captions from a model, for self-critical training."""

from __future__ import annotations

import torch
from torch import Tensor

from tarazu.captions.data.vocabulary import EOS, PAD, SOS
from tarazu.captions.decoding.beam_search import DecodableModel
from tarazu.captions.decoding.constraints import mask_forbidden


@torch.no_grad()
def sample(model: DecodableModel, images: Tensor, max_words: int) -> Tensor:
    """Draw one caption for each image from the model.

    Nothing waits for a GPU, so the function can be captured in a CUDA graph.

    Args:
        model: what decodes.
        images: (B, ...), as `model.start` takes them.
        max_words: words of the longest caption.

    Returns:
        (B, at most max_words + 2): `<sos>`, words, `<eos>`, then `<pad>`.
    """
    state, batch = model.start(images), len(images)
    token = torch.full((batch,), SOS, device=images.device)
    tokens, ended = [token], torch.zeros(batch, dtype=torch.bool, device=images.device)
    for position in range(max_words + 1):
        logits, state, _ = model.step(state, token)
        probabilities = torch.softmax(mask_forbidden(logits.float(), position, max_words), 1)
        # The first arrival of exponential waiting times with these rates is a draw from the
        # distribution; `torch.multinomial` would wait for the GPU.
        arrival_order = probabilities / torch.empty_like(probabilities).exponential_()
        token = arrival_order.argmax(1).masked_fill(ended, PAD)
        ended = ended | (token == EOS)
        tokens.append(token)
        if not ended.is_cuda and bool(ended.all()):  # on a GPU this would wait
            break
    return torch.stack(tokens, 1)
