"""The decoder's layers compiled one by one: elementwise work is fused, ten kernel launches become
one.

All layers of a model have the same code, so it is compiled once, not once for each layer ("regional
compilation" in PyTorch's recipes). The compiled code is kept in the user's cache folder. `fast:
false` in the recipe is the plain path, with which tests compare.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from tarazu.chat.fast import fused_lora, inductor_patches
from tarazu.chat.model import flash_attention, flex_attention
from tarazu.engine import dropout
from tarazu.storage.cache import cache_dir

# Hidden size from which `fused_lora` pays: a tenth faster at 2,304, slower at 64.
MIN_FUSED_WIDTH = 2048


def compile_layers(model: PreTrainedModel, checkpointing: bool = False) -> None:
    """Compile every decoder layer and the last norm in place; names of parameters stay.

    Args:
        model: the causal LM, with its adapters, on its device.
        checkpointing: recompute a layer's activations in the backward pass.
    """
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_dir() / "compiled"))
    # Compiling FlashAttention's kernels takes ten seconds; the next process finds them here.
    os.environ.setdefault("FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED", "1")
    os.environ.setdefault("FLASH_ATTENTION_CUTE_DSL_CACHE_DIR", str(cache_dir() / "flash"))
    flex_attention.raise_recompile_limit()
    inductor_patches.register_tanh_lowering()
    inductor_patches.extend_persistent_reductions()
    if model.config.get_text_config().hidden_size >= MIN_FUSED_WIDTH:
        fused_lora.fuse_lora_layers(model)
    for layer in model.get_decoder().layers:
        # The mask takes care of the window. Layers that differ would be compiled twice.
        if getattr(layer.self_attn, "sliding_window", None) is not None:
            layer.self_attn.sliding_window = None
    wrap_layers(model, checkpointing, partial(torch.compile, options=_compiler_options()))
    if (norm := getattr(model.get_decoder(), "norm", None)) is not None:
        norm.forward = _Norm(norm)


@cache
def _compiler_options() -> dict[str, Any]:
    """Options of Inductor: one object for all layers, or each layer would be compiled by itself."""
    from torch._inductor import config

    from tarazu.chat.fast.matmul_fusion_pass import FuseSkinnyMatmuls

    options: dict[str, Any] = {"post_grad_custom_pre_pass": FuseSkinnyMatmuls()}
    if hasattr(config, "combo_kernels_pointwise_only"):
        # Small kernels that do not depend on each other become one.
        options |= {"combo_kernels": True, "combo_kernels_pointwise_only": True}
    return options


def is_compiled(model: PreTrainedModel) -> bool:
    """Whether `compile_layers` has compiled this model."""
    forward = model.get_decoder().layers[0].forward
    return isinstance(forward, _Layer) and hasattr(forward.prepared, "_torchdynamo_orig_callable")


def wrap_layers(
    model: PreTrainedModel,
    checkpointing: bool = False,
    transform: Callable[[Callable], Callable] = lambda forward: forward,
) -> None:
    """Let each decoder layer take its own part of a prefix, and run `transform(forward)`.

    Args:
        model: the causal LM; its layers' `forward` is replaced.
        checkpointing: recompute a layer's activations in the backward pass, with a prefix, too.
        transform: prepares a layer's forward pass, for example `torch.compile`.
    """
    for number, layer in enumerate(model.get_decoder().layers):
        # Without transformers' own checkpointing, which drops caches.
        forward = inspect.unwrap(type(layer).forward).__get__(layer)
        layer.forward = _Layer(layer, transform(forward), number, checkpointing)


def _mark_width_dynamic(*inputs: torch.Tensor | None) -> None:
    """Tell the compiler that T of (B, T, ...) varies. It would find out at the second width only,
    and compile everything again."""
    for tensor in inputs:
        if tensor is not None:
            torch._dynamo.maybe_mark_dynamic(tensor, 1)


class _Norm:
    """The norm after the last layer: compiled for training on packed lines on a GPU, else as it
    is."""

    def __init__(self, norm: torch.nn.Module):
        self.norm, self.plain, self.prepared = norm, norm.forward, torch.compile(norm.forward)

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """(B, T, width) -> (B, T, width)."""
        trains = self.norm.training and torch.is_grad_enabled()
        if not (hidden.is_cuda and trains and hidden.shape[0] == 1):
            return self.plain(hidden)
        _mark_width_dynamic(hidden)
        return self.prepared(hidden)


class _Layer:
    """The forward pass of one layer: prepared for block masks and `cu_seqlens`, else as it is.

    Args:
        layer: the decoder layer.
        prepared: its forward pass, compiled for example.
        number: which of the decoder's layers it is.
        checkpointing: recompute activations in the backward pass.
    """

    def __init__(
        self, layer: torch.nn.Module, prepared: Callable, number: int, checkpointing: bool
    ):
        self.layer, self.plain, self.prepared, self.number = layer, layer.forward, prepared, number
        self.checkpointing = checkpointing
        self.is_trained = any(parameter.requires_grad for parameter in layer.parameters())
        self.uses_dropout = dropout.uses_dropout(layer)

    def __call__(
        self, *args: Any, attention_mask: Any = None, prefixes: list | None = None, **kwargs: Any
    ) -> Any:
        has_boundaries = flash_attention.is_cu_seqlens(attention_mask)
        if not (has_boundaries or isinstance(attention_mask, BlockMask)):
            return self.plain(*args, attention_mask=attention_mask, **kwargs)
        if prefixes is not None:
            kwargs["prefix"] = prefixes[self.number]
        if self.number == 0:
            # The input of all other layers requires a gradient. If the first layer's does, too, one
            # compiled code serves all: that saves more than this gradient costs.
            if (self.is_trained or prefixes) and torch.is_grad_enabled():
                args[0].requires_grad_()
            if has_boundaries:
                rotary = kwargs.get("position_embeddings") or ()
                _mark_width_dynamic(args[0], kwargs.get("position_ids"), *rotary)
        kwargs["attention_mask"] = attention_mask
        if not (self.layer.training and self.checkpointing):
            return self.prepared(*args, **kwargs)
        # A CUDA graph cannot capture the saving of the RNG state; only dropout needs it.
        return checkpoint(
            self.prepared,
            *args,
            use_reentrant=False,
            preserve_rng_state=self.uses_dropout,
            **kwargs,
        )
