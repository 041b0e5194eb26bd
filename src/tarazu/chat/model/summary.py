"""The structure of the loaded model in numbers: `model.json`, which the report explains."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from transformers import PreTrainedModel

from tarazu.chat.model import loading, quantization
from tarazu.chat.model.trainable import TrainableChatModel

MAX_TRAINED_TENSORS = 400


def model_summary(model: PreTrainedModel, name: str) -> dict[str, Any]:
    """Layers, shapes and parameters by part, read from the model itself.

    Args:
        model: the loaded base model.
        name: as the recipe gives it.
    """
    config, decoder = model.config, model.get_decoder()
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head.weight is embeddings.weight
    parts = {"embeddings": embeddings.weight.numel()}
    for i, layer in enumerate(decoder.layers):
        parts[f"layer {i}"] = _num_parameters(layer.parameters())
    parts["final norm"] = _num_parameters(decoder.norm.parameters())
    if not tied:
        parts["head"] = head.weight.numel()
    total = _num_parameters(model.parameters())
    # The tensors of the first layer stand for those of all layers.
    tensors = {
        n: p for n, p in model.named_parameters() if "layers.0." in n or ".layers." not in f".{n}"
    }
    dtype = str(embeddings.weight.dtype).removeprefix("torch.")
    if quantization.is_quantized(model):
        dtype += ", linear layers NF4 (4 bits)"
    return {
        "name": name,
        "architecture": type(model).__name__,
        "model_type": config.model_type,
        "variant": loading.variant(name),
        "dtype": dtype,
        "attention": config._attn_implementation,
        "parameters": total,
        "num_layers": len(decoder.layers),
        "hidden_size": config.hidden_size,
        "vocab_size": embeddings.weight.shape[0],
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": getattr(config, "num_key_value_heads", config.num_attention_heads),
        "max_position_embeddings": getattr(config, "max_position_embeddings", None),
        "sliding_window": getattr(config, "sliding_window", None),
        "tied_embeddings": tied,
        "parts": [
            {"name": part, "parameters": count, "fraction": count / total}
            for part, count in parts.items()
        ],
        "tensors": [
            {"name": n, "shape": list(quantization.shape(p)), "parameters": quantization.count(p)}
            for n, p in tensors.items()
        ],
    }


def trained_tensors(model: TrainableChatModel) -> list[dict[str, Any]]:
    """Names and shapes of the trained tensors, at most `MAX_TRAINED_TENSORS`."""
    tensors = [{"name": name, "shape": list(p.shape)} for name, p in model.trainable().items()]
    return tensors[:MAX_TRAINED_TENSORS]


def _num_parameters(parameters: Iterable[torch.Tensor]) -> int:
    return sum(quantization.count(parameter) for parameter in parameters)
