"""Models with published sizes and random weights, and random rows with the lengths of real ones.

So speed is measured without a download. The rows' lengths are log-normal with a median of 450
tokens and sigma 0.8 (a mean near 590), clipped to 48..2,048. Instruction data looks like this: most
rows are short, and the tail is long. The last 60% of a row, its answer, carries loss. Tokens are
log-uniform over the vocabulary (Zipf's law), so a model can learn something, and its loss shows it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

MEDIAN_LENGTH, SIGMA = 450, 0.8  # of the log-normal lengths
MIN_LENGTH, MAX_LENGTH = 48, 2048  # tokens; lengths are clipped to them
MEAN_LENGTH = 585  # about, after clipping
ANSWER_FRACTION = 0.6  # of a row's tokens, at its end
NUM_SPECIAL = 3  # ids below this are padding, end and start


class PlainRow(NamedTuple):
    """A tokenized row. `chat.model.batching.TokenizedRow(*row)` is tarazu's own form of it.

    Args:
        ids: (T,) token ids.
        supervised: (T,) bool, True where a token carries loss.
        index: number of the row.
    """

    ids: np.ndarray
    supervised: np.ndarray
    index: int


def rows(
    count: int, seed: int = 0, vocab_size: int = 128_000, max_length: int = MAX_LENGTH
) -> list[PlainRow]:
    """Random rows. Each is a function of the seed and its number.

    Args:
        count: number of rows.
        seed: of the random numbers.
        vocab_size: token ids are below this.
        max_length: longer rows are cut to this many tokens.
    """
    return [_row(np.random.default_rng([seed, i]), vocab_size, max_length, i) for i in range(count)]


def _row(rng: np.random.Generator, vocab_size: int, max_length: int, index: int) -> PlainRow:
    length = int(np.clip(rng.lognormal(np.log(MEDIAN_LENGTH), SIGMA), MIN_LENGTH, MAX_LENGTH))
    ranks = np.exp(rng.uniform(0, np.log(vocab_size - NUM_SPECIAL), length)).astype(np.int64)
    ids = NUM_SPECIAL + ranks - 1
    length = min(length, max_length)
    supervised = np.arange(length) >= round((1 - ANSWER_FRACTION) * length)
    return PlainRow(ids[:length], supervised, index)


def labelled(rows: list[PlainRow]) -> dict[str, list]:
    """The rows as the columns that TRL and the trainer of transformers take.

    Labels are -100 where a token carries no loss.
    """
    return {
        "input_ids": [row.ids.tolist() for row in rows],
        "labels": [np.where(row.supervised, row.ids, -100).tolist() for row in rows],
    }


# --- models ---


def gemma2_2b() -> Any:
    """google/gemma-2-2b: 2.61 billion parameters, a quarter of them the vocabulary."""
    from transformers import Gemma2Config

    return Gemma2Config(
        vocab_size=256_000,
        hidden_size=2304,
        intermediate_size=9216,
        num_hidden_layers=26,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=256,
        sliding_window=4096,
        attn_logit_softcapping=50.0,
        final_logit_softcapping=30.0,
        query_pre_attn_scalar=256,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    )


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
        vocab_size=128_256,
        hidden_size=3072,
        intermediate_size=8192,
        num_hidden_layers=28,
        num_attention_heads=24,
        num_key_value_heads=8,
        head_dim=128,
        rope_parameters=rope,
        max_position_embeddings=131_072,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=128_000,
        eos_token_id=128_001,
    )


def gemma3_270m() -> Any:
    """google/gemma-3-270m: 268 million parameters, 170 million of them the vocabulary.

    Five of six layers attend to the last 512 positions only.
    """
    from transformers import Gemma3TextConfig

    return Gemma3TextConfig(
        vocab_size=262_144,
        hidden_size=640,
        intermediate_size=2048,
        num_hidden_layers=18,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=256,
        sliding_window=512,
        query_pre_attn_scalar=256,
        max_position_embeddings=32_768,
        tie_word_embeddings=True,
        layer_types=["full_attention" if i % 6 == 5 else "sliding_attention" for i in range(18)],
    )


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
    """The causal LM of a shape with random weights.

    The weights are drawn on their device: on a GPU that takes a second instead of a minute.

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
    """Number of weights of a base model, tied ones once: the N of `common.bound_share`.

    Call it before adapters are added.
    """
    return sum(parameter.numel() for parameter in model.parameters())
