"""A small real study: a tiny Llama in a local folder, its tokenizer trained on shipped rows."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import tarazu

SAMPLES = Path(tarazu.__file__).parent / "samples"
SPECIALS = [
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
]
METHODS = {
    "base": {},
    "prompt_tuning": {"num_virtual_tokens": 4},
    "prefix_tuning": {"num_virtual_tokens": 4},
    "p_tuning": {"num_virtual_tokens": 4, "encoder_width": 16},
    "lora": {"rank": 2, "dropout": 0.1, "learning_rate": 1e-2},
    "rslora": {"rank": 2},
    "dora": {"rank": 2, "learning_rate": 1e-2},
    "loha": {"rank": 2},
    "layers": {"num_first": 1, "num_last": 1, "learning_rate": 1e-2},
}


def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of 600 tokens with Llama 3's special tokens."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    lines = (SAMPLES / "chat_fa.jsonl").read_text(encoding="utf-8").splitlines()
    made.train_from_iterator(
        lines, trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    )
    made.add_special_tokens([AddedToken(text, special=True) for text in SPECIALS])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token=SPECIALS[0], eos_token=SPECIALS[1], pad_token=SPECIALS[1]
    )


def save_model(folder: Path, hidden: int = 32, inner: int = 48) -> Path:
    """A tiny Llama in a local folder."""
    words = tokenizer()
    torch.manual_seed(0)
    sizes = {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    config = LlamaConfig(
        **sizes,
        vocab_size=len(words),
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        max_position_embeddings=2048,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def recipe(path: Path, model: Path, **changes) -> Path:
    """A recipe with every method; YAML reads JSON."""
    content = {
        "task": "chat",
        "model": str(model),
        "data": {
            "source": "samples:chat_fa.jsonl",
            "split": {"train": 0.8, "validation": 0.1, "test": 0.1},
            "max_length": 512,
        },
        "budget": {
            "tokens": 16_000,
            "batch_rows": 8,
            "micro_batch_tokens": 1500,
            "evaluate_every": 8_000,
            "validation_rows": 4,
        },
        "generation": {"max_new_tokens": 5, "num_test_answers": 3, "samples_per_validation": 1},
        "methods": METHODS,
        "device": "cpu",
    }
    path.write_text(json.dumps({**content, **changes}, ensure_ascii=False), encoding="utf-8")
    return path
