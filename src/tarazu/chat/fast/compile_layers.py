"""The decoder's layers, compiled one by one: fused elementwise work, one kernel launch where there
were ten.

All layers of a model are one piece of code, so it is compiled once and not once per layer
("regional compilation", PyTorch's recipes). The compiler's results stay in the user's cache
folder. `fast: false` in the recipe is the plain path, which tests compare with.
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

WIDE = 2048  # hidden numbers from which on LoRA and DoRA inside the large products (`wide.py`) pays: a tenth faster at 2,304, slower at 64


def compile_layers(model: PreTrainedModel, checkpointing: bool = False) -> None:
    """Compiles every decoder layer of `model` in place; parameters and their names stay."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_dir() / "compiled"))
    os.environ.setdefault(
        "FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED", "1"
    )  # its kernels take ten seconds to make: the next process finds them
    os.environ.setdefault("FLASH_ATTENTION_CUTE_DSL_CACHE_DIR", str(cache_dir() / "flash"))
    flex_attention.raise_recompile_limit()
    inductor_patches.register_tanh_lowering()
    inductor_patches.extend_persistent_reductions()
    if model.config.get_text_config().hidden_size >= WIDE:
        fused_lora.fuse_lora_layers(model)
    for layer in model.get_decoder().layers:
        if getattr(layer.self_attn, "sliding_window", None) is not None:
            layer.self_attn.sliding_window = None  # the mask does the window; a difference between layers would compile them twice
    wrap_layers(model, checkpointing, partial(torch.compile, options=_options()))
    if (norm := getattr(model.get_decoder(), "norm", None)) is not None:
        norm.forward = _Norm(norm)


@cache
def _options() -> dict[str, Any]:
    """For the compiler, which is imported only where it is used. One object for all layers, or
    each would be compiled anew."""
    from torch._inductor import config

    from tarazu.chat.fast.matmul_fusion_pass import FuseSkinnyMatmuls

    together = {
        "combo_kernels": True,
        "combo_kernels_pointwise_only": True,
    }  # small kernels that do not wait for each other are one
    return {
        "post_grad_custom_pre_pass": FuseSkinnyMatmuls(),
        **(together if hasattr(config, "combo_kernels_pointwise_only") else {}),
    }


def is_compiled(model: PreTrainedModel) -> bool:
    """Whether `compile_layers` was here."""
    forward = model.get_decoder().layers[0].forward
    return isinstance(forward, _Layer) and hasattr(forward.prepared, "_torchdynamo_orig_callable")


def wrap_layers(
    model: PreTrainedModel, checkpointing: bool = False, made: Callable = lambda function: function
) -> None:
    """Lets each decoder layer take its own part of the `prefixes` that the decoder is called with;
    runs `made(forward)`.

    `checkpointing`: forget a layer's activations and make them again on the way back, prefix or
    not.
    """
    for number, layer in enumerate(model.get_decoder().layers):
        inner = inspect.unwrap(type(layer).forward).__get__(
            layer
        )  # without transformers' checkpointing, which drops caches
        layer.forward = _Layer(layer, made(inner), number, checkpointing)


def _of_any_width(*inputs: torch.Tensor | None) -> None:
    """Tells the compiler that the second side of (B, T, ...) is a variable. Left alone it finds
    out at the second packed width, and compiles all again."""
    for tensor in inputs:
        if tensor is not None:
            torch._dynamo.maybe_mark_dynamic(tensor, 1)


class _Norm:
    """The norm behind the last layer: compiled for packed lines that are learned from on a GPU,
    the plain one for everything else."""

    def __init__(self, norm: torch.nn.Module):
        self.norm, self.plain, self.prepared = norm, norm.forward, torch.compile(norm.forward)

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        if not (
            hidden.is_cuda
            and self.norm.training
            and torch.is_grad_enabled()
            and hidden.shape[0] == 1
        ):
            return self.plain(hidden)
        _of_any_width(hidden)
        return self.prepared(hidden)


class _Layer:
    """One layer's forward: the prepared one for block attention, the plain one for everything
    else."""

    def __init__(
        self, layer: torch.nn.Module, prepared: Callable, number: int, checkpointing: bool
    ):
        self.checkpointing = checkpointing
        self.layer, self.plain, self.prepared, self.number = layer, layer.forward, prepared, number
        self.trained = any(parameter.requires_grad for parameter in layer.parameters())
        self.draws = dropout.uses_dropout(layer)

    def __call__(
        self, *args: Any, attention_mask: Any = None, prefixes: list | None = None, **rest: Any
    ) -> Any:
        if not (
            isinstance(attention_mask, BlockMask) or flash_attention.is_cu_seqlens(attention_mask)
        ):
            return self.plain(*args, attention_mask=attention_mask, **rest)
        if prefixes is not None:
            rest["prefix"] = prefixes[self.number]
        if self.number == 0 and (self.trained or prefixes) and torch.is_grad_enabled():
            args[
                0
            ].requires_grad_()  # as in all other layers: one piece of code for all costs less than this gradient
        if self.number == 0 and flash_attention.is_cu_seqlens(attention_mask):
            _of_any_width(
                args[0], rest.get("position_ids"), *(rest.get("position_embeddings") or ())
            )
        if (
            self.layer.training and self.checkpointing
        ):  # a kept state of the dice could not be recorded
            return checkpoint(
                self.prepared,
                *args,
                attention_mask=attention_mask,
                use_reentrant=False,
                preserve_rng_state=self.draws,
                **rest,
            )
        return self.prepared(*args, attention_mask=attention_mask, **rest)
