"""FLOPs by method beside torch's own counter, which sees every product that really runs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from chat.test_methods import METHODS
from chat.tiny import VOCABULARY, Words, model
from torch.utils.flop_counter import FlopCounterMode

from tarazu.chat.fast import lightweight_adapters
from tarazu.chat.model.attention_mask import visible
from tarazu.chat.flops import visible_pairs, work_of
from tarazu.chat.model.forward import hidden_states
from tarazu.chat.model.batching import Row, lay_out
from tarazu.chat.model.loss import token_losses
from tarazu.chat.methods import Layers, LoRA, PrefixTuning

LENGTHS = np.array([40, 40, 40])
MORE = {
    "full": Layers(first=3, last=3, embeddings=True, final_norm=True, head=True),
    "first": Layers(first=2, last=0),
    "last": Layers(first=0, last=2),
    "lora_top": LoRA(rank=4, targets=["down_proj"]),
    "lora_dropout": LoRA(rank=4, dropout=0.2),
    "dora_dropout": METHODS["dora"].model_copy(update={"dropout": 0.2}),
    "prefix_long": PrefixTuning(virtual_tokens=16),
}


def counted(trainee) -> int:
    """What the counter sees in one padded batch without padding, in train mode, forward and backward."""
    random = np.random.default_rng(0)
    prefix = trainee.virtual if trainee.prefix else 0
    rows = [Row(random.integers(3, VOCABULARY, n), np.arange(n) >= n // 2, i) for i, n in enumerate(LENGTHS)]
    batch = lay_out([[row] for row in rows], trainee.virtual - prefix, prefix)
    trainee.module.train()
    with FlopCounterMode(display=False) as counter:
        token_losses(
            trainee.base, hidden_states(trainee, batch).flatten(0, 1)[batch.sources], batch.labels
        ).sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize(
    ("name", "family", "lean"),
    [(n, "gemma3", False) for n in METHODS if n != "base"]
    + [(n, "llama", False) for n in MORE]
    + [(n, "llama", True) for n in ("lora", "dora", "loha", "lora_dropout", "lora_top")],
)
def test_as_torchs_counter_sees_it(name, family, lean):
    torch.manual_seed(0)
    trainee = {**METHODS, **MORE}[name].attach(model(family, attention="eager"), Words())
    if lean:
        lightweight_adapters.lean(trainee.base)
    work = work_of(trainee)
    prefix = trainee.virtual if trainee.prefix else 0
    places = LENGTHS + trainee.virtual - prefix
    attention = sum(each for each, _ in work.keys) * float(
        (places * (places + prefix)).sum()
    )  # eager attention computes every pair
    ours = work.position * places.sum() + attention + work.supervised * 60 + work.batch
    assert ours == pytest.approx(counted(trainee), rel=0.03)


def test_where_training_starts_decides_the_cost():
    """Four times the parameters in the first layers alone, six in full, and less the later the first trained layer is."""
    position = {
        name: work_of(METHOD.attach(model("llama"), Words())).position
        for name, METHOD in MORE.items()
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
    mask = visible(torch.zeros_like(queries), torch.zeros_like(keys), queries, keys, window)
    assert visible_pairs(np.array([n]), prefix, window)[0] == mask.sum().item()


def test_counting_changes_nothing():
    trainee = METHODS["lora"].attach(model("llama"), Words())
    trainee.module.eval()
    before, state = [p.clone() for p in trainee.module.parameters()], torch.get_rng_state()
    work_of(trainee)
    assert all(torch.equal(a, b) and b.grad is None for a, b in zip(before, trainee.module.parameters(), strict=True))
    assert torch.equal(state, torch.get_rng_state()) and not trainee.module.training
