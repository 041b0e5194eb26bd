"""The whole fast path on a GPU (compiled layers, blocks, lean adapters, recorded passes) against the plain one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from chat.tiny import Words
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig

from tarazu.chat import flex, task
from tarazu.chat.layout import Row
from tarazu.chat.settings import ChatRecipe

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
SIZES = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
SHAPES = {"gemma2": Gemma2Config(**SIZES, sliding_window=128, query_pre_attn_scalar=16), "llama": LlamaConfig(**SIZES)}
NAMES = ["prompt_tuning", "prefix_tuning", "p_tuning", "lora", "rslora", "dora", "loha", "layers"]


def ready(name: str, shape: str, fast: bool, checkpointing: bool = False):
    budget = {"tokens": 1000, "precision": "float32", "gradient_checkpointing": checkpointing}
    recipe = ChatRecipe.model_validate({"task": "chat", "model": shape, "data": {"source": "x"}, "methods": {name: {}}, "budget": budget, "fast": fast})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(SHAPES[shape], dtype=torch.float32, attn_implementation=flex.NAME if fast else "eager").cuda()
    trainee = task.Chat().ready(recipe, name, model, Words())
    with torch.no_grad():
        for p in trainee.trainable().values():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())).to(p) * 0.02)
    trainee.module.train()
    return trainee


def gradients(trainee, lengths: tuple[int, ...], packed: bool) -> tuple[float, dict[str, torch.Tensor]]:
    """Of rows of these lengths, in passes of at most 1,024 places."""
    rows = [Row(np.random.default_rng(i).integers(3, 512, n), np.arange(n) > n // 3, i) for i, n in enumerate(lengths)]
    data = task.Prepared(None, None, None, [], packed)
    total = torch.zeros((), device="cuda")
    for batch in task.Chat().lay_out(trainee, data, rows, 1024):
        loss = task.Chat().loss(trainee, batch.to(torch.device("cuda"))).total
        loss.backward()
        total += loss.detach()
    found = {n: p.grad.clone() for n, p in trainee.trainable().items()}
    trainee.module.zero_grad(set_to_none=True)
    return float(total), found


@GPU
@pytest.mark.parametrize("shape", ["gemma2", "llama"])
@pytest.mark.parametrize("name", NAMES)
def test_recorded_passes_give_the_plain_paths_losses_and_gradients(name, shape):
    torch.backends.cuda.matmul.allow_tf32 = False
    plain, fast = ready(name, shape, fast=False), ready(name, shape, fast=True)
    for lengths in ((300, 290, 280, 77, 60), (200, 60), (300, 290, 280, 77, 60)):
        (loss, expected), (found_loss, found) = gradients(plain, lengths, False), gradients(fast, lengths, True)
        assert abs(loss - found_loss) < 1e-3 * abs(loss)
        for key, value in expected.items():
            assert torch.linalg.norm(found[key] - value) < 5e-3 * torch.linalg.norm(value) + 1e-4, key
    assert fast.recorder.records and not fast.recorder.why


@GPU
@pytest.mark.parametrize("name", ["lora", "prefix_tuning"])
def test_checkpointing_can_be_recorded(name):
    plain, fast = ready(name, "gemma2", fast=False), ready(name, "gemma2", fast=True, checkpointing=True)
    (loss, expected), (found_loss, found) = gradients(plain, (300, 290), False), gradients(fast, (300, 290), True)
    assert abs(loss - found_loss) < 1e-3 * abs(loss) and fast.recorder.records and not fast.recorder.why
    assert all(torch.linalg.norm(found[key] - value) < 5e-3 * torch.linalg.norm(value) + 1e-4 for key, value in expected.items())
