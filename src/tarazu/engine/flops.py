"""FLOPs of training, and the model FLOPs utilisation (MFU) of the device.

Model FLOPs are what the method itself needs: the forward pass, and the backward pass as deep as
something is trained. Padding and recomputation do not count, so wasted work lowers the utilisation
(PaLM, Chowdhery et al. 2022, appendix B).
"""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Iterator
from functools import cache
from typing import TypeVar

import torch
from torch.utils.flop_counter import FlopCounterMode

from tarazu.engine.ledger import Ledger
from tarazu.engine.precision import autocast, uses_bfloat16
from tarazu.engine.progress import log
from tarazu.engine.task import Data, Task
from tarazu.engine.trainable import TrainableModel
from tarazu.recipe.schema import Recipe

Count = TypeVar("Count")  # an int, or an array of ints


def flops_metrics(
    task: Task, model: TrainableModel, data: Data, recipe: Recipe, ledger: Ledger
) -> dict[str, float | None]:
    """The part of `ledger.json` about FLOPs.

    A task may count its own FLOPs per token; otherwise one real batch is counted.

    Returns:
        `flops_per_token`, `model_flops`, `utilisation` (0 to 1) and `device_matmul_flops` (FLOP/s).
        None where the number is unknown, or where nothing was trained.
    """
    unknown = dict.fromkeys(
        ("flops_per_token", "model_flops", "utilisation", "device_matmul_flops")
    )
    train_seconds = ledger.seconds.get("train")
    if not (model.trainable_names and train_seconds and ledger.counts.tokens):
        return unknown
    try:
        with torch.enable_grad(), autocast(recipe.budget, ledger.device):
            per_token = task.flops_per_token(model, data, recipe)
            if per_token is None:
                per_token = count_batch_flops(task, model, data, recipe)
    except (RuntimeError, TypeError, AttributeError) as error:
        # A finished training is worth more than this number.
        log(f"the FLOPs were not counted: {type(error).__name__}: {error}")
        return unknown
    dtype = torch.bfloat16 if uses_bfloat16(recipe.budget, ledger.device) else torch.float32
    rate = device_rate(ledger.device, dtype)
    total = per_token * ledger.counts.tokens
    return {
        "flops_per_token": per_token,
        "model_flops": total,
        "utilisation": total / train_seconds / rate if rate else None,
        "device_matmul_flops": rate,
    }


def count_batch_flops(task: Task, model: TrainableModel, data: Data, recipe: Recipe) -> float:
    """FLOPs per token of one real batch, forward and backward, by torch's counter, with padding."""
    rows = list(range(min(recipe.budget.batch_rows, data.size("train"))))
    device = next(model.module.parameters()).device
    was_training, tokens = model.module.training, 0
    model.module.eval()  # so that no running statistic changes
    with _countable_kernels(), FlopCounterMode(display=False) as counter:
        for batch in task.collate(model, data, "train", rows, recipe.budget.micro_batch_tokens):
            tokens += batch.counts.tokens
            task.loss(model, batch.to(device)).total.backward()
    model.module.zero_grad(set_to_none=True)
    model.module.train(was_training)
    return counter.get_total_flops() / tokens


@contextlib.contextmanager
def _countable_kernels() -> Iterator[None]:
    """Without the LSTM kernels of cuDNN and oneDNN.

    Torch's counter does not see their matrix products, and cuDNN's LSTM has no backward pass in
    eval mode.
    """
    with warnings.catch_warnings(), torch.backends.cudnn.flags(enabled=False):
        warnings.simplefilter("ignore")
        with torch.backends.mkldnn.flags(enabled=False):
            yield


@cache
def device_rate(device: torch.device, dtype: torch.dtype) -> float | None:
    """`matmul_rate`, measured once a process; None where there is no memory for it."""
    try:
        return matmul_rate(device, dtype)
    except RuntimeError:
        return None


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large square matrix product of random numbers, the best of six."""
    size = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best_seconds = float("inf")
    for _ in range(6):
        start = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best_seconds = min(best_seconds, time.perf_counter() - start)
    return 2 * size**3 / best_seconds


def linear_flops(rows: Count, in_features: int, out_features: int) -> Count:
    """FLOPs of a linear layer on `rows` vectors: a multiplication and an addition per weight."""
    return 2 * rows * in_features * out_features
