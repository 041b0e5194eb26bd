"""Tiny random models of the three families, from their real config classes."""

from __future__ import annotations

import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
)

VOCABULARY = 211
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
SPECIALS = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1}
FAMILIES = ("llama", "gemma2", "gemma3")


def model(family: str, seed: int = 0, window: int = 12, attention: str | None = None):
    """A float32 causal LM whose weights are large enough that mistakes show."""
    torch.manual_seed(seed)
    if family == "llama":
        made = LlamaForCausalLM(LlamaConfig(**SIZES, **SPECIALS))
    elif family == "gemma2":
        made = Gemma2ForCausalLM(
            Gemma2Config(**SIZES, **SPECIALS, sliding_window=window, query_pre_attn_scalar=8)
        )
    else:
        types = ["sliding_attention"] * 5 + ["full_attention"]
        made = Gemma3ForCausalLM(
            Gemma3TextConfig(
                **SIZES,
                **SPECIALS,
                sliding_window=window,
                query_pre_attn_scalar=8,
                layer_types=types,
            )
        )
    made.set_attn_implementation(attention or ("eager" if family == "gemma2" else "sdpa"))
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if parameter.dim() == 2:
                parameter.normal_(0, 0.3 if "embed" in name else 0.15)
    return made.eval()


class Words:
    """A tokenizer stand-in for methods that begin from a text: one token a word."""

    def __call__(self, text: str, add_special_tokens: bool = False) -> dict:
        return {"input_ids": [3 + sum(word.encode()) % (VOCABULARY - 3) for word in text.split()]}

    def __len__(self) -> int:
        return VOCABULARY
