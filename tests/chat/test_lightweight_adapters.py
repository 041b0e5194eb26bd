"""Our arithmetic of low-rank adapters is peft's: same losses, same gradients, same names."""

from __future__ import annotations

import pytest
import torch
from chat.test_methods import build, losses, rows
from chat.tiny import FAMILIES

from tarazu.chat.fast import lightweight_adapters
from tarazu.chat.model.batching import make_batch
from tarazu.chat.model.forward import hidden_states
from tarazu.chat.model.loss import token_losses

LIGHTWEIGHT_ADAPTERS = {
    "lora": lightweight_adapters.LightweightLoRA,
    "rslora": lightweight_adapters.LightweightLoRA,
    "dora": lightweight_adapters.LightweightDoRA,
    "loha": lightweight_adapters.LightweightLoHa,
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", LIGHTWEIGHT_ADAPTERS)
def test_lightweight_adapters_equal_pefts(name, family):
    model = build(name, family)
    names = set(model.trainable())
    expected, expected_gradients = loss_and_gradients(model)
    lightweight_adapters.use_lightweight_forward(model.base)
    kinds = [type(module) for module in model.module.modules()]
    assert kinds.count(LIGHTWEIGHT_ADAPTERS[name]) == 6 * 7
    value, gradients = loss_and_gradients(model)
    assert abs(value - expected) < 1e-4 and set(model.trainable()) == names
    for key, gradient in gradients.items():
        assert torch.allclose(gradient, expected_gradients[key], atol=1e-4, rtol=1e-3), key


@pytest.mark.parametrize("name", LIGHTWEIGHT_ADAPTERS)
def test_disabled_adapters_leave_the_base_model(name):
    model = build(name, "llama")
    lightweight_adapters.use_lightweight_forward(model.base)
    changed = losses(model, rows(), 99, True)
    with model.module.disable_adapter():
        plain = losses(model, rows(), 99, True)
    untouched = losses(build("base", "llama"), rows(), 99, True)
    assert plain == untouched and changed != untouched


def loss_and_gradients(model):
    batch = make_batch([rows()], width=64)
    model.module.zero_grad()
    loss = token_losses(
        model.base, hidden_states(model, batch).flatten(0, 1)[batch.label_positions], batch.labels
    ).sum()
    loss.backward()
    return float(loss), {name: p.grad.clone() for name, p in model.trainable().items()}
