"""What a chat method costs, computed from the model's shape: nothing is loaded and nothing runs."""

from __future__ import annotations

import numpy as np
import psutil
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from tarazu.chat.compatibility import require_compatible
from tarazu.chat.fast import lightweight_adapters
from tarazu.chat.flops import FlopCount, count_flops, flops_per_token
from tarazu.chat.model import flex_attention, loading, quantization
from tarazu.chat.model.building import NO_CHECKPOINTING
from tarazu.chat.model.loss import LARGE_CHUNK, SMALL_CHUNK
from tarazu.chat.model.trainable import TrainableChatModel
from tarazu.chat.prepared_data import ChatData
from tarazu.chat.settings import ChatRecipe
from tarazu.engine.cost import CostOutline
from tarazu.engine.precision import uses_bfloat16

# Bytes for each trained parameter: float32 weight, gradient, and Adam's two moments.
TRAINING_BYTES = 16
# Float32 copies of a trained parameter on disk: the weights, and two checkpoints with the moments.
DISK_COPIES = 1 + 2 * 3


def outline(recipe: ChatRecipe, name: str, data: ChatData, device: torch.device) -> CostOutline:
    """FLOPs and bytes of one run of a method, from a model on the meta device.

    Raises:
        Exception: whatever building the method raises.
    """
    require_compatible(recipe, name)
    dtype = torch.bfloat16 if uses_bfloat16(recipe.budget, device) else torch.float32
    model = meta_model(recipe, device, dtype)
    weights, unpacked = weight_bytes(recipe, model, dtype)
    method = recipe.methods[name]
    with torch.device("meta"):
        trainable = method.attach(model, data.tokenizer)
        if recipe.fast:
            lightweight_adapters.use_lightweight_forward(model)
    trained = sum(parameter.numel() for parameter in trainable.trainable().values())

    lengths = data.store.lengths("train")
    supervised = float(data.store.column("train", "answer_tokens").sum() / lengths.sum())
    step_tokens = (method.batch_rows or recipe.budget.batch_rows) * float(lengths.mean())
    pass_tokens = min(recipe.budget.micro_batch_tokens, step_tokens)
    training, forward = count_flops(trainable), count_flops(trainable, backward=False)
    train_flops = flops_per_token(training, trainable, lengths, supervised, pass_tokens)
    forward_flops = flops_per_token(forward, trainable, lengths, supervised, pass_tokens)
    tokens = recipe.budget.tokens or recipe.budget.epochs * float(lengths.sum())
    test_tokens = float(data.store.lengths("test").sum())

    logits = _logit_chunk_bytes(recipe, device)
    activations = _activation_bytes(trainable, training, recipe, lengths, dtype, device)
    steps, rows = _decoding(recipe, data)
    return CostOutline(
        train_flops=train_flops * tokens if trained else 0.0,
        evaluate_flops=forward_flops * test_tokens + _passage_flops(forward, data),
        decode_steps=steps,
        decode_flops=rows * (forward.per_position + forward.per_supervised_token),
        decode_bytes=weights + unpacked,
        fixed_bytes=_process_bytes(device) + weights + TRAINING_BYTES * trained,
        activation_bytes=activations if trained else logits,
        disk_bytes=4 * trained * DISK_COPIES,
        flops_per_token=train_flops if trained else None,
        notes=_notes(recipe, name, lengths, device),
    )


def meta_model(recipe: ChatRecipe, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """The model's structure on the meta device, without weights.

    Raises:
        UserError: the model cannot be found, or its attention cannot run.
        ValueError: transformers does not know the model's type.
    """
    path = loading.resolve_model_path(recipe.model)
    config = AutoConfig.from_pretrained(path, revision=recipe.revision)
    attention = loading.pick_attention(config.model_type, recipe.attention, device)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)
    return model.eval()


def weight_bytes(recipe: ChatRecipe, model: PreTrainedModel, dtype: torch.dtype) -> tuple[int, int]:
    """Bytes of the base's weights in memory, and bytes that a decoding step unpacks from 4 bits."""
    if recipe.quantize != "none":
        return quantization.estimate_bytes(model, dtype.itemsize)
    return sum(p.numel() for p in model.parameters()) * dtype.itemsize, 0


def _notes(
    recipe: ChatRecipe, name: str, lengths: np.ndarray, device: torch.device
) -> tuple[str, ...]:
    """What works, but not as one might expect."""
    notes = []
    on_gpu = device.type == "cuda"
    flex = on_gpu and (loading.pick_attention("", recipe.attention, device) == flex_attention.NAME)
    kind = recipe.methods[name].kind
    if recipe.budget.gradient_checkpointing and kind in NO_CHECKPOINTING and not flex:
        notes.append(
            "trains without gradient checkpointing: transformers drops the cache, and the prefix "
            "with it"
        )
    long = int((lengths > recipe.budget.micro_batch_tokens).sum())
    if long:
        notes.append(f"{long} rows are longer than micro_batch_tokens; each has a batch of its own")
    return tuple(notes)


def _decoding(recipe: ChatRecipe, data: ChatData) -> tuple[float, float]:
    """Decoding steps of one run, and mean rows of a step."""
    settings = recipe.generation
    answers = len(data.questions) + min(settings.num_test_answers, data.size("test"))
    groups = [(answers, settings.max_new_tokens)]
    if recipe.reading:
        groups.append((len(data.reading), recipe.reading.max_new_tokens))
    steps = sum(-(-count // settings.batch_rows) * tokens for count, tokens in groups)
    return steps, sum(count * tokens for count, tokens in groups) / max(1, steps)


def _passage_flops(forward: FlopCount, data: ChatData) -> float:
    """FLOPs of the loss of the forgetting passages."""
    rows = [row for passages in data.forgetting.values() for row in passages.rows]
    if not rows:
        return 0.0
    lengths = np.array([len(row.ids) for row in rows], dtype=np.int64)
    return forward.total(lengths, float(sum(row.supervised.sum() for row in rows)), 0)


def _activation_bytes(
    trainable: TrainableChatModel,
    training: FlopCount,
    recipe: ChatRecipe,
    lengths: np.ndarray,
    dtype: torch.dtype,
    device: torch.device,
) -> float:
    """Bytes kept for the backward pass of the largest micro-batch, for a decoder with a gated MLP.

    A layer keeps, for each position: six vectors of the hidden size (inputs, norms, residuals),
    queries, keys, values and outputs with their gradients' inputs, and four MLP vectors.
    """
    config = trainable.base.config
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = head * (4 * config.num_attention_heads + 4 * config.num_key_value_heads)
    per_layer = 6 * config.hidden_size + heads + 4 * config.intermediate_size
    if recipe.budget.gradient_checkpointing:
        per_layer = config.hidden_size
    # Layers with a backward pass cost more for each key than a forward pass alone.
    forward_only = 4 * config.num_attention_heads * head
    layers = sum(per_key > forward_only for per_key, _ in training.per_visible_key)
    positions = max(recipe.budget.micro_batch_tokens, int(lengths.max()))
    all_logits = positions * config.vocab_size * dtype.itemsize
    # The gradient of the logits overwrites them, so a chunk counts once.
    logits = min(_logit_chunk_bytes(recipe, device), all_logits)
    return positions * per_layer * layers * dtype.itemsize + logits


def _logit_chunk_bytes(recipe: ChatRecipe, device: torch.device) -> int:
    """Bytes of logits that the loss holds at a time."""
    large = device.type == "cuda" and recipe.memory == "normal"
    return LARGE_CHUNK if large else SMALL_CHUNK


def _process_bytes(device: torch.device) -> int:
    """Memory of the process itself, where that is the device's memory."""
    return psutil.Process().memory_info().rss if device.type == "cpu" else 0
