"""Compare loss and gradients of the fast path with a plain reference, on the model that was timed.

The reference is peft's own modules on transformers' own layers, in float32, one unpacked row at a
time, with the trained weights of the run. What differs is the rounding of bfloat16.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from benchmarks import shapes

if TYPE_CHECKING:
    import torch

MAX_ROWS = 12  # compared
CANDIDATE_ROWS = 32  # the first rows of the data, of which those that fit into a pass are compared


def compared(
    task: Any, model: Any, data: Any, recipe: Any, tokenizer: Any, micro_batch_tokens: int
) -> dict[str, float]:
    """Compare a packed pass with the reference.

    Args:
        task: the chat task.
        model: the `TrainableChatModel` after its training.
        data: the `ChatData` with the rows.
        recipe: the recipe of the run, with one method.
        tokenizer: as `building.wrap_model` takes it.
        micro_batch_tokens: maximum number of tokens in a pass.

    Returns:
        "loss" and "reference_loss": mean loss of a supervised token, in nats; "gradient_distance":
        |fast - reference| / |reference|; "gradient_cosine": their cosine similarity.
    """
    import torch

    from tarazu.engine.precision import autocast

    device = model.base.device
    rows = [
        i for i in range(CANDIDATE_ROWS) if len(data.store.row("train", i)[0]) <= micro_batch_tokens
    ][:MAX_ROWS]
    # 1. The fast path, as in the measured steps.
    model.module.train()
    batches = task.collate(model, data, "train", rows, micro_batch_tokens)
    with autocast(recipe.budget, device):
        loss, gradient = _loss_and_gradient(task, model, batches, device)
    if model.graphed_forward is not None:
        # The reference model needs the memory of the CUDA graphs.
        model.graphed_forward.clear()
        torch.cuda.empty_cache()
    # 2. The reference: one row a pass, unpacked, float32 without TF32.
    reference = _reference(model, recipe, tokenizer)
    unpacked = replace(data, packed=False)
    row_batches = [
        batch
        for i in rows
        for batch in task.collate(reference, unpacked, "train", [i], micro_batch_tokens)
    ]
    allow_tf32 = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    reference_loss, reference_gradient = _loss_and_gradient(task, reference, row_batches, device)
    torch.backends.cuda.matmul.allow_tf32 = allow_tf32
    # 3. The differences.
    distance = (gradient - reference_gradient).norm() / reference_gradient.norm()
    cosine = torch.nn.functional.cosine_similarity(gradient, reference_gradient, dim=0)
    return {
        "loss": loss,
        "reference_loss": reference_loss,
        "gradient_distance": float(distance),
        "gradient_cosine": float(cosine),
    }


def _loss_and_gradient(
    task: Any, model: Any, batches: list, device: torch.device
) -> tuple[float, torch.Tensor]:
    """Mean loss of the supervised tokens, and the gradient (n,) of the summed loss in float64."""
    import torch

    total_loss, num_tokens = 0.0, 0
    for batch in batches:
        loss_sum = task.loss(model, batch.to(device))
        loss_sum.total.backward()
        total_loss += float(loss_sum.total.detach())
        num_tokens += loss_sum.count
    gradient = torch.cat([p.grad.flatten().double().cpu() for p in model.trainable().values()])
    model.module.zero_grad(set_to_none=True)
    return total_loss / num_tokens, gradient


def _reference(model: Any, recipe: Any, tokenizer: Any) -> Any:
    """The same method with the same weights, in float32 and without the fast path."""
    import torch

    from tarazu.chat.model.building import wrap_model

    budget = {"precision": "float32", "gradient_checkpointing": False}
    plain_recipe = recipe.model_copy(
        update={
            "fast": False,
            "memory": "normal",
            "budget": recipe.budget.model_copy(update=budget),
        }
    )
    # transformers' SDPA does not cap attention scores, as Gemma 2 needs.
    attention = "eager" if "gemma" in recipe.model else "sdpa"
    device = str(model.base.device)
    base = shapes.build(recipe.model, device, attention, torch.float32).eval()
    reference = wrap_model(plain_recipe, next(iter(recipe.methods)), base, tokenizer)
    trained = dict(model.module.named_parameters())
    with torch.no_grad():
        for name, parameter in reference.module.named_parameters():
            parameter.copy_(trained[name])
    reference.module.train()
    return reference
