"""Gradients of one optimizer step, accumulated over its micro-batches."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tarazu.engine.counts import TokenCounts
from tarazu.engine.precision import autocast
from tarazu.engine.task import Task
from tarazu.engine.trainable import Batch, TrainableModel
from tarazu.recipe.schema import Budget


def forward_backward(
    task: Task,
    model: TrainableModel,
    batches: Sequence[Batch],
    optimizer: torch.optim.Optimizer,
    budget: Budget,
    device: torch.device,
) -> tuple[torch.Tensor, TokenCounts]:
    """Add up the gradients of all micro-batches of a step, and clip them.

    Args:
        task: computes the summed loss of a batch.
        model: gets the gradients.
        batches: the micro-batches of the step.
        optimizer: holds the parameters whose gradients are clipped together.
        budget: precision and maximum gradient norm.
        device: where the model is.

    Returns:
        Mean loss per supervised token and gradient norm before clipping, (2,), on the device; and
        the sizes of the step's rows.
    """
    supervised = max(1, sum(batch.counts.supervised for batch in batches))
    total_loss, counts = torch.zeros((), device=device), TokenCounts()
    for batch in batches:
        with autocast(budget, device):
            loss = task.loss(model, batch.to(device))
        objective = loss.total if loss.penalty is None else loss.total + loss.penalty
        # Divide by the tokens of the whole step, not of this micro-batch: the gradient is then the
        # same for any cut into micro-batches.
        (objective / supervised).backward()
        total_loss += loss.total.detach()
        counts = counts + batch.counts
        # Free the autograd graph before the next forward pass builds another.
        del loss, objective
    parameters = [
        parameter
        for group in optimizer.param_groups
        for parameter in group["params"]
        if parameter.grad is not None
    ]
    norm = torch.nn.utils.clip_grad_norm_(parameters, budget.max_grad_norm)
    return torch.stack([total_loss.float() / supervised, norm.float()]), counts
