"""`memory: low` changes how a step is cut, not what it computes."""

from __future__ import annotations

import pytest
import torch
from chat.test_methods import VOCABULARY, model
from pydantic import ValidationError

from tarazu.chat.model.loss import token_losses
from tarazu.chat.settings import ChatRecipe
from tarazu.commands import run as study_commands

CONTENT = {
    "task": "chat",
    "model": "x",
    "data": {"source": "x", "max_length": 300},
    "budget": {"tokens": 10},
    "methods": {"lora": {}},
}


def test_low_memory_means_checkpointing_and_one_row_a_pass():
    low = ChatRecipe.model_validate({**CONTENT, "memory": "low"})
    assert low.budget.gradient_checkpointing and low.budget.micro_batch_tokens == 300
    plain = ChatRecipe.model_validate(CONTENT)
    assert not plain.budget.gradient_checkpointing and plain.budget.micro_batch_tokens == 8192
    with pytest.raises(ValidationError):
        ChatRecipe.model_validate({**CONTENT, "memory": "tiny"})


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_loss_chunk_changes_nothing(family):
    base = model(family)
    hidden = torch.randn(40, 32, requires_grad=True)
    labels = torch.randint(0, VOCABULARY, (40,))
    results = []
    for chunk in (1, 5000, None):
        hidden.grad = None
        losses = token_losses(base, hidden, labels, chunk)
        losses.sum().backward()
        results.append((losses.detach(), hidden.grad.clone()))
    logits = base.lm_head(hidden)
    if cap := getattr(base.config, "final_logit_softcapping", None):
        logits = torch.tanh(logits / cap) * cap
    expected = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    gradient = torch.autograd.grad(expected.sum(), hidden)[0]
    for losses, grad in results:
        assert torch.allclose(losses, expected, atol=1e-5) and torch.allclose(
            grad, gradient, atol=1e-5
        )


@pytest.mark.parametrize("chunk", [1, 5000])
@pytest.mark.parametrize("trained", ["head", "head and hidden"])
def test_trained_head_gets_its_gradient_in_chunks(trained, chunk):
    base = model("gemma2")
    head, labels = base.lm_head.weight.requires_grad_(), torch.randint(0, VOCABULARY, (40,))
    hidden = torch.randn(40, 32, requires_grad=trained != "head")
    own = [head, hidden][: 1 + hidden.requires_grad]
    logits = (
        torch.tanh(base.lm_head(hidden) / base.config.final_logit_softcapping)
        * base.config.final_logit_softcapping
    )
    wanted = torch.autograd.grad(
        torch.nn.functional.cross_entropy(logits, labels, reduction="sum"), own
    )
    loss = token_losses(base, hidden, labels, chunk).sum()
    for _ in range(2):
        torch.testing.assert_close(
            torch.autograd.grad(loss, own, retain_graph=True), wanted, atol=1e-5, rtol=1e-4
        )


def test_prefix_trains_with_flex_attention_without_blocks(tmp_path):
    """On a CPU, and for narrow lines on a GPU, a prefix is a cache: checkpointing must keep it."""
    from chat.small import recipe, save_model

    content = recipe(
        tmp_path / "r.json",
        save_model(tmp_path / "m"),
        methods={"prefix_tuning": {"num_virtual_tokens": 4}},
        attention="flex",
        layout="packed",
        memory="low",
        questions=None,
    )
    run = study_commands.run(str(content), str(tmp_path / "out")).run("prefix_tuning", 0)
    losses = [
        event["loss"] for event in run.read_jsonl("events.jsonl") if event["event"] == "validation"
    ]
    assert run.done() and losses[-1] < losses[0]
