"""How much arithmetic training is, and how much of the device it uses.

Model FLOPs are what the method itself needs: forward, and backward only as deep as something is trained. Padding and
recomputing are not in it, so wasted work lowers the utilisation (PaLM, Chowdhery et al. 2022, appendix B).
"""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from tarazu.engine.ledger import Ledger
from tarazu.engine.precision import autocast, uses_bfloat16
from tarazu.engine.progress import log
from tarazu.engine.task import Data, Task
from tarazu.engine.trainable import TrainableModel
from tarazu.recipe.schema import Recipe


def flops_metrics(
    task: Task, model: TrainableModel, data: Data, recipe: Recipe, ledger: Ledger
) -> dict[str, float | None]:
    """The part of `ledger.json` about arithmetic; null where it is not known, or where nothing was trained.

    A task may know its own `flops_per_token(model, data, recipe)`; else one real batch is counted.
    """
    names = ("flops_per_token", "model_flops", "utilisation", "device_matmul_flops")
    seconds = ledger.seconds.get("train")
    if not (model.trainable_names and seconds and ledger.counts.tokens):
        return dict.fromkeys(names)
    try:
        with torch.enable_grad(), autocast(recipe.budget, ledger.device):
            own = getattr(task, "flops_per_token", None)
            each = own(model, data, recipe) if own else count_batch_flops(task, model, data, recipe)
    except (
        RuntimeError,
        TypeError,
        AttributeError,
    ) as error:  # a finished training is worth more than this figure
        log(f"the arithmetic was not counted: {type(error).__name__}: {error}")
        return dict.fromkeys(names)
    rate = device_rate(
        ledger.device,
        torch.bfloat16 if uses_bfloat16(recipe.budget, ledger.device) else torch.float32,
    )
    total = each * ledger.counts.tokens
    return dict(
        zip(names, (each, total, total / seconds / rate if rate else None, rate), strict=True)
    )


def count_batch_flops(task: Task, model: TrainableModel, data: Data, recipe: Recipe) -> float:
    """FLOPs per token of one real batch, forward and backward, as torch's own counter sees them (padding included)."""
    rows = list(range(min(recipe.budget.batch_rows, data.size("train"))))
    training, tokens = model.module.training, 0
    model.module.eval()  # no running statistic may move
    with _plain_products(), FlopCounterMode(display=False) as counter:
        for batch in task.collate(model, data, "train", rows, recipe.budget.micro_batch_tokens):
            tokens += batch.counts.tokens
            task.loss(model, batch.to(next(model.module.parameters()).device)).total.backward()
    model.module.zero_grad(set_to_none=True)
    model.module.train(training)
    return counter.get_total_flops() / tokens


@contextlib.contextmanager
def _plain_products() -> Iterator[None]:
    """Without the libraries' own LSTMs, whose products torch's counter does not see (and cuDNN's trains in train mode only)."""
    with warnings.catch_warnings(), torch.backends.cudnn.flags(enabled=False):
        warnings.simplefilter("ignore")
        with torch.backends.mkldnn.flags(enabled=False):
            yield


@cache
def device_rate(device: torch.device, dtype: torch.dtype) -> float | None:
    """`matmul_rate`, measured once a process; None where there is no room for it."""
    try:
        return matmul_rate(device, dtype)
    except RuntimeError:
        return None


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large square product of random numbers, the best of several."""
    size = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(6):
        start = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def linear_flops(rows: Any, into: int, out: int) -> Any:
    """Of `rows` vectors of `into` numbers through an (out, into) matrix: a multiplication and an addition each."""
    return 2 * rows * into * out
