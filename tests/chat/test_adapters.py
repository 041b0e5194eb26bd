"""Our arithmetic of low-rank adapters is peft's: same losses, same gradients, same names."""

from __future__ import annotations

import pytest
import torch
from chat.test_methods import build, losses, rows
from chat.tiny import FAMILIES

from tarazu.chat.fast import lightweight_adapters
from tarazu.chat.model.forward import hidden_states
from tarazu.chat.model.batching import lay_out
from tarazu.chat.model.loss import token_losses

LEAN = {"lora": lightweight_adapters.LeanLoRA, "rslora": lightweight_adapters.LeanLoRA, "dora": lightweight_adapters.LeanDoRA, "loha": lightweight_adapters.LeanLoHa}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", LEAN)
def test_lean_adapters_equal_pefts(name, family):
    trainee = build(name, family)
    names = set(trainee.trainable())
    expected, expected_gradients = loss_and_gradients(trainee)
    lightweight_adapters.lean(trainee.base)
    assert sum(type(module) is LEAN[name] for module in trainee.module.modules()) == 6 * 7
    value, gradients = loss_and_gradients(trainee)
    assert abs(value - expected) < 1e-4 and set(trainee.trainable()) == names
    for key, gradient in gradients.items():
        assert torch.allclose(gradient, expected_gradients[key], atol=1e-4, rtol=1e-3), key


@pytest.mark.parametrize("name", LEAN)
def test_switched_off_they_are_the_base(name):
    trainee = build(name, "llama")
    lightweight_adapters.lean(trainee.base)
    changed = losses(trainee, rows(), 99, True)
    with trainee.module.disable_adapter():
        plain = losses(trainee, rows(), 99, True)
    untouched = losses(build("base", "llama"), rows(), 99, True)
    assert plain == untouched and changed != untouched


def loss_and_gradients(trainee):
    batch = lay_out([rows()], width=64)
    trainee.module.zero_grad()
    loss = token_losses(trainee.base, hidden_states(trainee, batch).flatten(0, 1)[batch.sources], batch.labels).sum()
    loss.backward()
    return float(loss), {name: p.grad.clone() for name, p in trainee.trainable().items()}
