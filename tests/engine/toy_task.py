"""The smallest real task: next-symbol prediction with an embedding and a linear layer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tarazu.engine import trainer
from tarazu.engine.counts import TokenCounts
from tarazu.engine.ledger import Ledger
from tarazu.engine.signals import StopSignals
from tarazu.engine.task import Task
from tarazu.engine.trainable import LossSum, TrainableModel
from tarazu.recipe.schema import Budget, Method, Recipe
from tarazu.storage.run_folder import RunDir

SYMBOLS = 17
CPU = torch.device("cpu")


@dataclass
class ToyBatch:
    """Symbols (T,) and the symbols after them, (T,)."""

    inputs: torch.Tensor
    targets: torch.Tensor
    counts: TokenCounts

    def to(self, device: torch.device) -> ToyBatch:
        return self


class ToyData:
    """Rows of 3 to 11 random symbols."""

    def __init__(self, rows: int = 24):
        rng = np.random.default_rng(0)
        self.rows = [
            torch.from_numpy(rng.integers(0, SYMBOLS, rng.integers(3, 12))) for _ in range(rows)
        ]

    def size(self, split: str) -> int:
        return len(self.rows) if split == "train" else 4


class Toy(Task):
    """The toy task.

    Args:
        memory: maximum tokens of a batch; a larger batch is out of memory.
        poison: steps with a NaN gradient, from 1.
        dropout: dropout probability after the embedding.
    """

    name = "toy"

    def __init__(self, memory: int = 10**9, poison: tuple[int, ...] = (), dropout: float = 0.0):
        self.memory, self.poison, self.dropout, self.steps = memory, poison, dropout, 0

    def prepare(self, recipe, folder, device) -> ToyData:
        return ToyData()

    def build(self, seed: int = 0, frozen: bool = False, rate: float = 0.05) -> TrainableModel:
        """A model; `frozen` freezes the embedding."""
        torch.manual_seed(seed)
        module = torch.nn.Sequential(
            torch.nn.Embedding(SYMBOLS, 8),
            torch.nn.Dropout(self.dropout),
            torch.nn.Linear(8, SYMBOLS),
        )
        if frozen:
            module[0].requires_grad_(False)
        names = frozenset(name for name, p in module.named_parameters() if p.requires_grad)
        return TrainableModel(module, names, rate)

    def collate(self, model, data, split, rows, limit):
        batches, current = [], []
        for row in rows:
            if current and sum(len(data.rows[i]) for i in [*current, row]) > limit:
                batches.append(current)
                current = []
            current.append(row)
        return [self._batch([data.rows[i] for i in part]) for part in [*batches, current]]

    def _batch(self, rows):
        inputs = torch.cat([row[:-1] for row in rows])
        targets = torch.cat([row[1:] for row in rows])
        counts = TokenCounts(len(rows), sum(map(len, rows)), len(targets), 0, 0)
        return ToyBatch(inputs, targets, counts)

    def loss(self, model, batch) -> LossSum:
        training = model.module.training
        if training and batch.counts.tokens > self.memory and batch.counts.rows > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
        logits = model.module(batch.inputs)
        total = torch.nn.functional.cross_entropy(logits, batch.targets, reduction="sum")
        if training:
            self.steps += 1
            if self.steps in self.poison:
                weights = model.module[2].weight.sum()
                # The square root of 0: a finite loss with an infinite gradient.
                total = total + (weights - weights.detach()).sqrt()
        return LossSum(total, batch.counts.supervised)

    def validate(self, model, data, recipe):
        batches = self.collate(model, data, "validation", [0, 1, 2, 3], 10**9)
        losses = [self.loss(model, batch) for batch in batches]
        return {"loss": float(sum(x.total for x in losses)) / sum(x.count for x in losses)}

    def evaluate(self, model, data, recipe, folder, ledger):
        return {}


def train(
    path: Path,
    task: Toy | None = None,
    model: TrainableModel | None = None,
    optimizer: str = "adamw",
    ema_decay: float = 0.0,
    **budget: Any,
) -> tuple[TrainableModel, list[dict[str, Any]], Ledger]:
    """Train the toy in `path`; return the model, the events and the ledger."""
    task = task or Toy()
    budget = {"epochs": 3, "batch_rows": 5, "micro_batch_tokens": 10**6, **budget}
    recipe = Recipe(task="toy", budget=Budget(**budget), methods={"toy": {}})
    method = Method(kind="toy", optimizer=optimizer, ema_decay=ema_decay)
    model, run, ledger = model or task.build(), RunDir(path / "toy" / "seed-0"), Ledger(CPU)
    with StopSignals(str(path)) as stop:
        trainer.train(task, model, ToyData(), recipe, method, run, 0, ledger, stop)
    return model, run.read_jsonl("events.jsonl"), ledger
