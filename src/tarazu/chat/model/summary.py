"""The structure of the loaded model, in numbers: what `model.json` holds and the report explains."""

from __future__ import annotations

from transformers import PreTrainedModel

from tarazu.chat.model import loading, quantization


def model_summary(model: PreTrainedModel, name: str) -> dict:
    """Blocks, shapes and parameters by part, read from the model itself."""
    config, decoder = model.config, model.get_decoder()
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head.weight is embeddings.weight
    total = sum(quantization.count(p) for p in model.parameters())
    parts = [("embeddings", embeddings.weight.numel())]
    parts += [
        (f"layer {i}", sum(quantization.count(p) for p in layer.parameters()))
        for i, layer in enumerate(decoder.layers)
    ]
    parts += [("final norm", sum(quantization.count(p) for p in decoder.norm.parameters()))]
    parts += [] if tied else [("head", head.weight.numel())]
    block = "layers.0."
    shown = [(n, p) for n, p in model.named_parameters() if block in n or ".layers." not in f".{n}"]
    return {
        "name": name,
        "architecture": type(model).__name__,
        "model_type": config.model_type,
        "variant": loading.variant(name),
        "dtype": str(embeddings.weight.dtype).removeprefix("torch.")
        + (", linear layers NF4 (4 bits)" if quantization.is_quantized(model) else ""),
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
            {"name": part, "parameters": count, "fraction": count / total} for part, count in parts
        ],
        "tensors": [
            {"name": n, "shape": list(quantization.shape(p)), "parameters": quantization.count(p)}
            for n, p in shown
        ],
    }


def trained_tensors(trainable) -> list[dict]:
    """The trained tensors by name and shape, at most 400."""
    return [{"name": name, "shape": list(p.shape)} for name, p in trainable.trainable().items()][
        :400
    ]
