"""A base model whose linear layers are kept in 4 bits, through bitsandbytes: QLoRA.

Dettmers et al. 2023, arXiv:2305.14314. Weights are NF4 in blocks of 64 with one 8-bit scale each;
256 of these scales share a float32 scale ("double quantisation"). That is 4.127 bits a weight. A
layer is dequantized to the compute type at every use. Embeddings, norms, the head and all that is
trained stay as they are.
"""

from __future__ import annotations

import importlib.util
import math
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel

PACKAGE = "bitsandbytes"
BLOCK = 64  # weights under one 8-bit scale
SCALE_BLOCK = 256  # 8-bit scales under one float32 scale


def is_installed() -> bool:
    """Whether bitsandbytes is installed."""
    return importlib.util.find_spec(PACKAGE) is not None


def load_kwargs(dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """Arguments of `from_pretrained` that quantize each layer as it is read.

    Args:
        dtype: of the computation.
        device: where the model lives; a quantized model is not moved later.
    """
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    return {"quantization_config": config, "device_map": {"": device}}


def disable_inplace_repacking(model: PreTrainedModel) -> PreTrainedModel:
    """Keep quantized weights bit-identical, as the fingerprint needs them.

    On CPUs with AVX-512 BF16, bitsandbytes would repack them in place in eval mode.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def shape(parameter: torch.Tensor) -> torch.Size:
    """Shape of the weight that a parameter stands for. A quantized one is stored as a byte
    column."""
    state = getattr(parameter, "quant_state", None)
    return parameter.shape if state is None else torch.Size(state.shape)


def count(parameter: torch.Tensor) -> int:
    """Number of weights of a parameter of any shape; a quantized one holds two in a byte."""
    return math.prod(shape(parameter))


def is_quantized(model: nn.Module) -> bool:
    """Whether some of the model's weights are in 4 bits."""
    return any(getattr(p, "quant_state", None) is not None for p in model.parameters())


def packed_bytes(num_weights: int) -> int:
    """Bytes of a quantized matrix with this many weights."""
    blocks = -(-num_weights // BLOCK)
    halves, scales = -(-num_weights // 2), 4 * -(-blocks // SCALE_BLOCK)
    code_tables = 4 * (256 + 16 + 1)  # of the scales and of NF4, and the scales' offset
    return halves + blocks + scales + code_tables


def estimate_bytes(model: PreTrainedModel, itemsize: int) -> tuple[int, int]:
    """Memory of a model once it is loaded in 4 bits.

    Args:
        model: the model with plain weights, on any device ("meta" too).
        itemsize: bytes of a weight that stays as it is.

    Returns:
        Bytes of all weights, and bytes that one decoding step writes and reads for dequantized
        weights.
    """
    head = model.get_output_embeddings()
    linear = [m.weight for m in model.modules() if isinstance(m, nn.Linear) and m is not head]
    num_linear = sum(weight.numel() for weight in linear)
    num_other = sum(p.numel() for p in model.parameters()) - num_linear
    total = sum(packed_bytes(weight.numel()) for weight in linear) + num_other * itemsize
    return total, 2 * num_linear * itemsize
