"""Is the fast path right, on the very model that was timed? Loss and gradients of a packed pass against the plainest way.

The reference is peft's own modules on transformers' own layers in float32, one row at a time, unpacked, with the trained
weights of the run. What is left is bfloat16's rounding.
"""

from __future__ import annotations

from typing import Any

from benchmarks import shapes


def compared(
    task: Any, trainable: Any, data: Any, recipe: Any, words: Any, limit: int
) -> dict[str, float]:
    """{"loss", "reference_loss": nats a token; "gradient_distance": |fast - reference| / |reference|; "gradient_cosine"}."""
    import torch

    from tarazu.engine.precision import autocast

    device = trainable.base.device
    rows = [i for i in range(32) if len(data.store.row("train", i)[0]) <= limit][:12]
    trainable.module.train()
    batches = task.collate(trainable, data, "train", rows, limit)
    with autocast(recipe.budget, device):
        loss, fast = _gradients(task, trainable, batches, device)
    if trainable.graphed_forward is not None:  # makes room
        trainable.graphed_forward.clear()
        torch.cuda.empty_cache()
    reference = _reference(task, trainable, recipe, words)
    alone = [
        batch for i in rows for batch in task.collate(reference, _padded(data), "train", [i], limit)
    ]
    tf32, torch.backends.cuda.matmul.allow_tf32 = torch.backends.cuda.matmul.allow_tf32, False
    wanted, plain = _gradients(task, reference, alone, device)
    torch.backends.cuda.matmul.allow_tf32 = tf32
    cosine = torch.nn.functional.cosine_similarity(fast, plain, dim=0)
    return {
        "loss": loss,
        "reference_loss": wanted,
        "gradient_distance": float((fast - plain).norm() / plain.norm()),
        "gradient_cosine": float(cosine),
    }


def _gradients(task: Any, trainable: Any, batches: list, device: Any) -> tuple[float, Any]:
    """Mean loss of the answer tokens, and the gradient of their sum as one vector."""
    import torch

    total, count = 0.0, 0
    for batch in batches:
        found = task.loss(trainable, batch.to(device))
        found.total.backward()
        total, count = total + float(found.total), count + found.count
    vector = torch.cat([p.grad.flatten().double().cpu() for p in trainable.trainable().values()])
    trainable.module.zero_grad(set_to_none=True)
    return total / count, vector


def _reference(task: Any, trainable: Any, recipe: Any, words: Any) -> Any:
    """The same method on the same weights, in float32, without anything fast."""
    import torch

    from tarazu.chat.model.building import wrap_model

    plain = recipe.model_copy(
        update={
            "fast": False,
            "memory": "normal",
            "budget": recipe.budget.model_copy(
                update={"precision": "float32", "gradient_checkpointing": False}
            ),
        }
    )
    model = shapes.build(
        recipe.model,
        str(trainable.base.device),
        "eager" if "gemma" in recipe.model else "sdpa",
        torch.float32,
    ).eval()
    made = wrap_model(plain, next(iter(recipe.methods)), model, words)
    own = dict(trainable.module.named_parameters())
    with torch.no_grad():
        for name, parameter in made.module.named_parameters():
            parameter.copy_(own[name])
    made.module.train()
    return made


def _padded(data: Any) -> Any:
    from dataclasses import replace

    return replace(data, packed=False)
