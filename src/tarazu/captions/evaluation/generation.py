"""Captions and attention maps of a trained model for the images of a split."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from tarazu.captions.data.vocabulary import PAD, SOS
from tarazu.captions.dataset import CaptionData
from tarazu.captions.decoding import beam_search
from tarazu.captions.decoding.beam_search import Hypothesis
from tarazu.captions.decoding.ensemble import Ensemble
from tarazu.captions.settings import CaptionsRecipe
from tarazu.captions.trainable import TrainableCaptioner

IMAGES_PER_BATCH = {"cpu": 64, "cuda": 500}


def generate_captions(
    model: TrainableCaptioner,
    data: CaptionData,
    split: str,
    recipe: CaptionsRecipe,
    beams: int,
    names: list[str] | None = None,
) -> dict[str, Hypothesis]:
    """Return the best caption of each image, computed in float32.

    Args:
        model: the model, in eval mode.
        data: the prepared data.
        split: whose images are captioned.
        recipe: has the settings of the search.
        beams: width of the search; 1 is greedy.
        names: caption only these images.
    """
    names = names or data.names[split]
    captions = {}
    batch_size = IMAGES_PER_BATCH[data.device.type]
    with torch.no_grad(), torch.autocast(data.device.type, enabled=False):
        for start in range(0, len(names), batch_size):
            batch = names[start : start + batch_size]
            hypotheses = beam_search.beam_search(
                model.module,
                _encode(model, data, batch),
                beams,
                data.vocabulary.max_length,
                recipe.length_penalty,
                recipe.block_trigrams,
                recipe.early_stopping,
            )
            captions |= {name: best[0] for name, best in zip(batch, hypotheses, strict=True)}
    return captions


def caption_texts(captions: dict[str, Hypothesis], data: CaptionData) -> dict[str, str]:
    """Return captions as words with spaces between them."""
    decode = data.vocabulary.decode
    return {name: " ".join(decode(caption.token_ids)) for name, caption in captions.items()}


def sample_captions(
    model: TrainableCaptioner, data: CaptionData, recipe: CaptionsRecipe, final: bool
) -> list[dict[str, Any]]:
    """Return greedy captions of test images, as samples of the engine.

    Args:
        model: the model, in eval mode.
        data: the prepared data.
        recipe: has the settings of the search.
        final: caption all images; otherwise the first one, with a thumbnail.
    """
    names = data.names["test"] if final else data.names["test"][:1]
    captions = generate_captions(model, data, "test", recipe, beams=1, names=names)
    return [
        {"id": name, "image": None if final else data.save_thumbnail(name), "output": text}
        for name, text in caption_texts(captions, data).items()
    ]


def attention_maps(
    model: TrainableCaptioner, data: CaptionData, captions: dict[str, Hypothesis]
) -> dict[str, np.ndarray] | None:
    """Return the attention weights of each word of captions.

    Args:
        model: the model, in eval mode.
        data: the prepared data.
        captions: the model's captions by image.

    Returns:
        (words, P) by image; None for a decoder without attention.
    """
    names, maps = list(captions), {}
    batch_size = IMAGES_PER_BATCH[data.device.type]
    for start in range(0, len(names), batch_size):
        batch = names[start : start + batch_size]
        lines = [[SOS, *captions[name].token_ids] for name in batch]
        width = max(map(len, lines))
        padded = [line + [PAD] * (width - len(line)) for line in lines]
        tokens = torch.tensor(padded, device=data.device)
        no_logits = torch.empty(0, dtype=torch.long, device=data.device)
        with torch.no_grad(), torch.autocast(data.device.type, enabled=False):
            alphas = model.module.forward_teacher_forced(
                _encode(model, data, batch), tokens, positions=no_logits
            )[1]
        if alphas is None:
            return None
        for name, alpha in zip(batch, alphas, strict=True):
            maps[name] = alpha[: len(captions[name].token_ids)].float().cpu().numpy()
    return maps


def _encode(model: TrainableCaptioner, data: CaptionData, names: list[str]) -> Tensor:
    """The model's input for named images.

    Pixels pass the encoder here, before the beams multiply them; while `model.encoded_images` is a
    dict, only once for all decoding settings. An ensemble's members encode them themselves.
    """
    image_ids = torch.tensor([data.index_of[name] for name in names], device=data.device)
    if not model.encoder_tuned or isinstance(model.module, Ensemble):
        return model.inputs_for(image_ids)
    cache, key = model.encoded_images, tuple(names)
    if cache is None:
        return model.module.encode_images(model.inputs_for(image_ids))
    if key not in cache:
        cache[key] = model.module.encode_images(model.inputs_for(image_ids))
    return cache[key]
