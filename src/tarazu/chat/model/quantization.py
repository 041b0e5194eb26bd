"""A base model whose linear layers are kept in 4 bits, through bitsandbytes: QLoRA (Dettmers et al. 2023, arXiv:2305.14314).

Weights are NF4 in blocks of 64 with one 8-bit scale each, whose own scales are shared by 256 blocks ("double
quantisation"): 4.127 bits a weight. A layer is unpacked to the compute type at every use. Embeddings, norms and the head
stay as they are. What is trained beside or before the packed weights is not packed.
"""

from __future__ import annotations

import importlib.util
import math
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PACKAGE = "bitsandbytes"
BLOCK, BLOCKS = 64, 256  # weights under one scale, and scales under one scale of their own


def is_installed() -> bool:
    """Whether the package that packs is here."""
    return importlib.util.find_spec(PACKAGE) is not None


def load_kwargs(dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """What `from_pretrained` is given besides, so that it packs each layer as it reads it, computing in `dtype`."""
    from transformers import BitsAndBytesConfig

    packing = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    return {"quantization_config": packing, "device_map": {"": device}}


def disable_inplace_repacking(model: PreTrainedModel) -> PreTrainedModel:
    """Keeps packed weights as they are: on CPUs with AVX-512 BF16, bitsandbytes would repack them in place in eval mode."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def shape(parameter: torch.Tensor) -> torch.Size:
    """The shape of the weight that a parameter stands for; a packed one is a column of bytes, two weights in each."""
    state = getattr(parameter, "quant_state", None)
    return parameter.shape if state is None else torch.Size(state.shape)


def count(parameter: torch.Tensor) -> int:
    """How many weights a parameter stands for."""
    return math.prod(shape(parameter))


def is_quantized(model: nn.Module) -> bool:
    """Whether some of the model's weights are in 4 bits."""
    return any(
        getattr(parameter, "quant_state", None) is not None for parameter in model.parameters()
    )


def packed_bytes(weights: int) -> int:
    """Bytes of a packed matrix of so many weights: halves of bytes, a byte for each block, 4 for each 256 blocks, the code."""
    blocks = -(-weights // BLOCK)
    return -(-weights // 2) + blocks + 4 * -(-blocks // BLOCKS) + 4 * (256 + 16 + 1)


def estimate_bytes(model: PreTrainedModel, itemsize: int) -> tuple[int, int]:
    """Bytes of a plain model's weights once it is loaded packed, and of what one step of writing unpacks and reads again."""
    head = model.get_output_embeddings()
    linear = [m.weight for m in model.modules() if isinstance(m, nn.Linear) and m is not head]
    inside = sum(weight.numel() for weight in linear)
    rest = sum(p.numel() for p in model.parameters()) - inside
    return sum(
        packed_bytes(weight.numel()) for weight in linear
    ) + rest * itemsize, 2 * inside * itemsize
