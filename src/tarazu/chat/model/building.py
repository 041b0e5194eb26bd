"""From a recipe to a model that can be trained: load the base, attach the method, choose the fast
paths."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tarazu.chat.compatibility import require_compatible
from tarazu.chat.fast import compile_layers, graphed_forward, lightweight_adapters
from tarazu.chat.model import flash_attention, flex_attention, loading
from tarazu.chat.model.loss import SMALL_CHUNK
from tarazu.chat.model.trainable import TrainableChatModel
from tarazu.chat.settings import ChatRecipe
from tarazu.engine import dropout
from tarazu.engine.precision import uses_bfloat16
from tarazu.errors import UserError

# transformers drops the cache under gradient checkpointing, and the prefix with it. Our flex
# attention checkpoints by itself.
NO_CHECKPOINTING = {"prefix_tuning"}


def load_base(recipe: ChatRecipe, name: str, device: torch.device) -> PreTrainedModel:
    """Load the base model for one method of the recipe.

    Raises:
        UserError: the model cannot be loaded, or the method does not work with it.
    """
    require_compatible(recipe, name)
    dtype = torch.bfloat16 if uses_bfloat16(recipe.budget, device) else torch.float32
    return loading.load_model(
        recipe.model, recipe.revision, dtype, device, recipe.attention, recipe.quantize
    )


def wrap_model(
    recipe: ChatRecipe, name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> TrainableChatModel:
    """Make a loaded base model trainable by one method of the recipe.

    Raises:
        UserError: the method does not fit the model, or the recipe asks for an attention that
            cannot run.
    """
    method = recipe.methods[name]
    trainable = method.attach(model, tokenizer)
    trainable.learning_rate = method.learning_rate
    trainable.loss_chunk = SMALL_CHUNK if recipe.memory == "low" else None
    trainable.module.to(model.device)
    for parameter in trainable.trainable().values():
        parameter.data = parameter.data.float()  # small updates vanish in bfloat16
    if recipe.budget.gradient_checkpointing and method.kind not in NO_CHECKPOINTING:
        # Without dropout the RNG state need not be kept; keeping it cannot be captured in a CUDA
        # graph.
        keep_rng = dropout.uses_dropout(model)
        model.gradient_checkpointing_enable(
            {"use_reentrant": False, "preserve_rng_state": keep_rng}
        )
    if recipe.fast:
        lightweight_adapters.use_lightweight_forward(model)
    trainable.use_cu_seqlens = _uses_flash_attention(trainable, recipe)
    on_gpu = recipe.fast and model.device.type == "cuda"
    if flex_attention.uses_flex_attention(model):
        prepare = compile_layers.compile_layers if on_gpu else compile_layers.wrap_layers
        prepare(model, recipe.budget.gradient_checkpointing)
    if on_gpu:
        trainable.graphed_forward = graphed_forward.make_graphed_forward(trainable)
    return trainable


def _uses_flash_attention(trainable: TrainableChatModel, recipe: ChatRecipe) -> bool:
    """Whether FlashAttention 4 runs the training passes. Raises `UserError` if it is asked for and
    cannot."""
    model, prefix = trainable.base, trainable.prefix_length
    if recipe.attention not in ("auto", "flash") or not flex_attention.uses_flex_attention(model):
        return False
    max_length = recipe.data.max_length + trainable.num_virtual_tokens
    reason = flash_attention.unavailable_reason(
        model.config, model.dtype, model.device, max_length, prefix
    )
    if reason and recipe.attention == "flash" and not prefix:
        raise UserError(
            reason, location="attention: flash", hint="attention: auto takes what there is"
        )
    return not reason
