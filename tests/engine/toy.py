"""The smallest real task: next-symbol prediction with an embedding and a linear layer, one of them frozen if asked."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from tarazu.engine import trainer
from tarazu.engine.counts import TokenCounts
from tarazu.engine.ledger import Ledger
from tarazu.engine.signals import StopSignals
from tarazu.engine.trainable import LossSum, TrainableModel
from tarazu.recipe.schema import Budget, Method, Recipe
from tarazu.storage.run_folder import RunDir

SYMBOLS = 17
CPU = torch.device("cpu")


@dataclass
class ToyBatch:
    sources: torch.Tensor
    targets: torch.Tensor
    counts: TokenCounts

    def to(self, device):
        return self


class ToyData:
    def __init__(self, rows: int = 24):
        random = np.random.default_rng(0)
        self.rows = [
            torch.from_numpy(random.integers(0, SYMBOLS, random.integers(3, 12)))
            for _ in range(rows)
        ]

    def size(self, split: str) -> int:
        return len(self.rows) if split == "train" else 4


class Toy:
    """`memory` is the most tokens a batch may have before it is out of memory; `poison` the steps with a NaN gradient."""

    name = "toy"

    def __init__(self, memory: int = 10**9, poison: tuple[int, ...] = (), dropout: float = 0.0):
        self.memory, self.poison, self.dropout, self.steps = memory, poison, dropout, 0

    def build(self, seed: int = 0, frozen: bool = False, rate: float = 0.05) -> TrainableModel:
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
        for i in rows:
            if current and sum(len(data.rows[j]) for j in [*current, i]) > limit:
                batches, current = [*batches, current], []
            current.append(i)
        return [self._batch([data.rows[i] for i in part]) for part in [*batches, current]]

    def _batch(self, rows):
        sources, targets = (
            torch.cat([row[:-1] for row in rows]),
            torch.cat([row[1:] for row in rows]),
        )
        return ToyBatch(
            sources, targets, TokenCounts(len(rows), sum(map(len, rows)), len(targets), 0, 0)
        )

    def loss(self, model, batch) -> LossSum:
        if model.module.training and batch.counts.tokens > self.memory and batch.counts.rows > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
        logits = model.module(batch.sources)
        total = torch.nn.functional.cross_entropy(logits, batch.targets, reduction="sum")
        if model.module.training:
            self.steps += 1
            if self.steps in self.poison:
                total = (
                    total
                    + (model.module[2].weight.sum() - model.module[2].weight.sum().detach()).sqrt()
                )  # finite, gradient infinite
        return LossSum(total, batch.counts.supervised)

    def validate(self, model, data, recipe):
        sums = [
            self.loss(model, b)
            for b in self.collate(model, data, "validation", [0, 1, 2, 3], 10**9)
        ]
        return {"loss": float(sum(s.total for s in sums)) / sum(s.count for s in sums)}

    def sample(self, model, data, recipe, final):
        return []

    def weights(self, model):
        return {name: p.data for name, p in model.trainable().items()}


def train(path, task=None, model=None, optimizer="adamw", ema_decay=0.0, **budget):
    """Trains in `path`; returns the model, the events and the ledger."""
    task = task or Toy()
    budget = {"epochs": 3, "batch_rows": 5, "micro_batch_tokens": 10**6, **budget}
    recipe = Recipe(task="toy", budget=Budget(**budget), methods={"toy": {}})
    model, run, ledger = model or task.build(), RunDir(path / "toy" / "seed-0"), Ledger(CPU)
    with StopSignals(str(path)) as stop:
        trainer.train(
            task,
            model,
            ToyData(),
            recipe,
            Method(kind="toy", optimizer=optimizer, ema_decay=ema_decay),
            run,
            0,
            ledger,
            stop,
        )
    return model, run.read_jsonl("events.jsonl"), ledger
