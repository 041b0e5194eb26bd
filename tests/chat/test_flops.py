"""FLOPs of each method against torch's own counter, which sees every product that runs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from chat.test_methods import METHODS
from chat.tiny import VOCABULARY, Words, model
from torch.utils.flop_counter import FlopCounterMode

from tarazu.chat.fast import lightweight_adapters
from tarazu.chat.flops import count_flops, visible_pairs
from tarazu.chat.methods import Layers, LoRA, PrefixTuning
from tarazu.chat.model.attention_mask import visibility_mask
from tarazu.chat.model.batching import TokenizedRow, make_batch
from tarazu.chat.model.forward import hidden_states
from tarazu.chat.model.loss import token_losses

LENGTHS = np.array([40, 40, 40])
MORE = {
    "full": Layers(num_first=3, num_last=3, embeddings=True, final_norm=True, lm_head=True),
    "first": Layers(num_first=2, num_last=0),
    "last": Layers(num_first=0, num_last=2),
    "lora_top": LoRA(rank=4, targets=["down_proj"]),
    "lora_dropout": LoRA(rank=4, dropout=0.2),
    "dora_dropout": METHODS["dora"].model_copy(update={"dropout": 0.2}),
    "prefix_long": PrefixTuning(num_virtual_tokens=16),
}


def counted(trainable) -> int:
    """Torch's count for one padded batch without padding, in train mode, forward and backward."""
    random = np.random.default_rng(0)
    prefix = trainable.prefix_length
    rows = [
        TokenizedRow(random.integers(3, VOCABULARY, n), np.arange(n) >= n // 2, i)
        for i, n in enumerate(LENGTHS)
    ]
    batch = make_batch([[row] for row in rows], trainable.prompt_length, prefix)
    trainable.module.train()
    with FlopCounterMode(display=False) as counter:
        token_losses(
            trainable.base,
            hidden_states(trainable, batch).flatten(0, 1)[batch.label_positions],
            batch.labels,
        ).sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize(
    ("name", "family", "lightweight"),
    [(n, "gemma3", False) for n in METHODS if n != "base"]
    + [(n, "llama", False) for n in MORE]
    + [(n, "llama", True) for n in ("lora", "dora", "loha", "lora_dropout", "lora_top")],
)
def test_count_equals_torchs_counter(name, family, lightweight):
    torch.manual_seed(0)
    trainable = {**METHODS, **MORE}[name].attach(model(family, attention="eager"), Words())
    if lightweight:
        lightweight_adapters.use_lightweight_forward(trainable.base)
    count = count_flops(trainable)
    prefix = trainable.prefix_length
    positions = LENGTHS + trainable.prompt_length
    attention = sum(each for each, _ in count.per_visible_key) * float(
        (positions * (positions + prefix)).sum()
    )  # eager attention computes every pair
    ours = count.per_position * positions.sum() + attention + count.per_pass
    ours += count.per_supervised_token * 60
    assert ours == pytest.approx(counted(trainable), rel=0.03)


def test_where_training_starts_decides_the_cost():
    """Full training costs six FLOPs a weight; the later the first trained layer, the fewer."""
    position = {
        name: count_flops(method.attach(model("llama"), Words())).per_position
        for name, method in MORE.items()
        if name in ("full", "first", "last")
    }
    blocks = sum(p.numel() for n, p in model("llama").named_parameters() if "proj" in n)
    assert position["full"] == pytest.approx(6 * blocks, rel=0.1)
    assert position["last"] < position["first"] < position["full"]
    assert position["last"] == pytest.approx((2 + 4 / 3) * blocks, rel=0.1)


@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("prefix", [0, 4])
def test_visible_pairs_are_those_of_the_mask(window, prefix):
    n = 12
    keys, queries = torch.arange(n + prefix)[None], torch.arange(prefix, n + prefix)[None]
    mask = visibility_mask(torch.zeros_like(queries), torch.zeros_like(keys), queries, keys, window)
    assert visible_pairs(np.array([n]), prefix, window)[0] == mask.sum().item()


def test_counting_changes_nothing():
    trainable = METHODS["lora"].attach(model("llama"), Words())
    trainable.module.eval()
    before, state = [p.clone() for p in trainable.module.parameters()], torch.get_rng_state()
    count_flops(trainable)
    assert all(
        torch.equal(a, b) and b.grad is None
        for a, b in zip(before, trainable.module.parameters(), strict=True)
    )
    assert torch.equal(state, torch.get_rng_state()) and not trainable.module.training
