"""Models with the published sizes and random weights, and rows with the lengths of real ones: speed needs no download.

The rows' lengths are log-normal with a median of 450 tokens and sigma 0.8 (a mean near 590), cut to 48..2,048, which is
how instruction data looks: most rows short, a long tail. The last 60% of a row, its answer, are under the loss. Tokens
are log-uniform over the vocabulary (Zipf's law), so that a model can learn something and its loss says that it does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

MEDIAN, SIGMA, SHORTEST, LONGEST = 450, 0.8, 48, 2048
ANSWER = 0.6  # of a row's tokens, at its end
MEAN = 585  # about, after the cut
SPECIAL = 3  # ids below are padding, end and start


class PlainRow(NamedTuple):
    """Tokens (n,) and which of them are under the loss (n,): `chat.layout.Row(*row)` is tarazu's own form of it."""

    ids: np.ndarray
    supervised: np.ndarray
    index: int


def rows(
    count: int, seed: int = 0, vocabulary: int = 128_000, longest: int = LONGEST
) -> list[PlainRow]:
    """`count` random rows, each a function of the seed and its number; a lower `longest` cuts the long ones."""
    return [_row(np.random.default_rng([seed, i]), vocabulary, longest, i) for i in range(count)]


def _row(random: np.random.Generator, vocabulary: int, longest: int, index: int) -> PlainRow:
    length = int(np.clip(random.lognormal(np.log(MEDIAN), SIGMA), SHORTEST, LONGEST))
    ids = (
        SPECIAL
        + np.exp(random.uniform(0, np.log(vocabulary - SPECIAL), length)).astype(np.int64)
        - 1
    )
    length = min(length, longest)
    return PlainRow(ids[:length], np.arange(length) >= round((1 - ANSWER) * length), index)


def labelled(rows: list[PlainRow]) -> dict[str, list]:
    """The rows as the columns that TRL (and any trainer of transformers) takes: labels are -100 where there is no loss."""
    return {
        "input_ids": [row.ids.tolist() for row in rows],
        "labels": [np.where(row.supervised, row.ids, -100).tolist() for row in rows],
    }


# --- models ---


def gemma2_2b() -> Any:
    """google/gemma-2-2b: 2.61 billion parameters, a quarter of them the vocabulary."""
    from transformers import Gemma2Config

    return Gemma2Config(
        vocab_size=256_000, hidden_size=2304, intermediate_size=9216, num_hidden_layers=26, num_attention_heads=8, num_key_value_heads=4,
        head_dim=256, sliding_window=4096, attn_logit_softcapping=50.0, final_logit_softcapping=30.0, query_pre_attn_scalar=256,
        max_position_embeddings=8192, tie_word_embeddings=True,
    )  # fmt: skip


def llama32_3b() -> Any:
    """meta-llama/Llama-3.2-3B: 3.21 billion parameters."""
    from transformers import LlamaConfig

    rope = {
        "rope_type": "llama3",
        "rope_theta": 500_000.0,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    return LlamaConfig(
        vocab_size=128_256, hidden_size=3072, intermediate_size=8192, num_hidden_layers=28, num_attention_heads=24, num_key_value_heads=8,
        head_dim=128, rope_parameters=rope, max_position_embeddings=131_072, rms_norm_eps=1e-5, tie_word_embeddings=True,
        bos_token_id=128_000, eos_token_id=128_001,
    )  # fmt: skip


def gemma3_270m() -> Any:
    """google/gemma-3-270m: 268 million parameters, 170 of them the vocabulary; five of six layers look back 512 places."""
    from transformers import Gemma3TextConfig

    return Gemma3TextConfig(
        vocab_size=262_144, hidden_size=640, intermediate_size=2048, num_hidden_layers=18, num_attention_heads=4, num_key_value_heads=1,
        head_dim=256, sliding_window=512, query_pre_attn_scalar=256, max_position_embeddings=32_768, tie_word_embeddings=True,
        layer_types=["full_attention" if i % 6 == 5 else "sliding_attention" for i in range(18)],
    )  # fmt: skip


TINY = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}


def tiny_gemma2() -> Any:
    """Gemma 2's structure, small enough for a test."""
    from transformers import Gemma2Config

    return Gemma2Config(
        **TINY, sliding_window=128, query_pre_attn_scalar=16, max_position_embeddings=4096
    )


def tiny_llama() -> Any:
    """Llama's structure, small enough for a test."""
    from transformers import LlamaConfig

    return LlamaConfig(**TINY, tie_word_embeddings=True, max_position_embeddings=4096)


SHAPES: dict[str, Callable[[], Any]] = {
    "gemma-2-2b": gemma2_2b,
    "llama-3.2-3b": llama32_3b,
    "gemma-3-270m": gemma3_270m,
    "tiny-gemma2": tiny_gemma2,
    "tiny-llama": tiny_llama,
}


def build(shape: str, device: str, attention: str, dtype: Any = None) -> Any:
    """The causal LM of a shape with random weights, made where it will stay: on a GPU that is a second, not a minute.

    Args:
        shape: a name in `SHAPES`.
        device: of the weights.
        attention: transformers' name of the attention implementation.
        dtype: of the weights; default bfloat16 on a GPU, float32 on a CPU.
    """
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    dtype = dtype or (torch.bfloat16 if str(device).startswith("cuda") else torch.float32)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(
            SHAPES[shape](), dtype=dtype, attn_implementation=attention
        )


def parameters(model: Any) -> int:
    """How many numbers the base model has, tied ones once: the N of the bound. Call it before adapters are added."""
    return sum(parameter.numel() for parameter in model.parameters())
