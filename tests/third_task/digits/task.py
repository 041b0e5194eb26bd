"""Digit classification: the six methods that a task must define, and nothing else."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from digits.settings import DigitsRecipe
from tarazu.engine.counts import TokenCounts
from tarazu.engine.ledger import Ledger
from tarazu.engine.task import Task
from tarazu.engine.trainable import LossSum, TrainableModel
from tarazu.storage.atomic_io import write_json
from tarazu.storage.run_folder import StudyDir

# Segments a to g of the digits 0 to 9.
SEGMENTS = [
    "1111110",
    "0110000",
    "1101101",
    "1111001",
    "0110011",
    "1011011",
    "1011111",
    "1110000",
    "1111111",
    "1111011",
]


@dataclass
class DigitsData:
    """Segments (N, 7) and labels (N,) of each split."""

    splits: dict[str, tuple[torch.Tensor, torch.Tensor]]

    def size(self, split: str) -> int:
        return len(self.splits[split][1])


@dataclass
class DigitsBatch:
    """Segments (B, 7) and labels (B,)."""

    segments: torch.Tensor
    labels: torch.Tensor
    counts: TokenCounts

    def to(self, device: torch.device) -> DigitsBatch:
        return DigitsBatch(self.segments.to(device), self.labels.to(device), self.counts)


class Digits(Task):
    """Seven-segment digits."""

    name = "digits"

    def prepare(self, recipe: DigitsRecipe, folder: StudyDir, device: torch.device) -> DigitsData:
        draw = torch.Generator().manual_seed(0)
        patterns = torch.tensor([[float(bit) for bit in digit] for digit in SEGMENTS])
        labels = torch.randint(10, (recipe.data.rows,), generator=draw)
        noise = torch.randn(recipe.data.rows, 7, generator=draw) * recipe.data.noise
        segments = patterns[labels] + noise
        end, tenth = recipe.data.rows, recipe.data.rows // 10
        bounds = {
            "train": (0, end - 2 * tenth),
            "validation": (end - 2 * tenth, end - tenth),
            "test": (end - tenth, end),
        }
        splits = {name: (segments[a:b], labels[a:b]) for name, (a, b) in bounds.items()}
        sha256 = hashlib.sha256(segments.numpy().tobytes()).hexdigest()
        sizes = {name: b - a for name, (a, b) in bounds.items()}
        write_json(folder.path / "data.json", {"sha256": sha256, "splits": sizes})
        return DigitsData(splits)

    def build(
        self,
        recipe: DigitsRecipe,
        name: str,
        data: DigitsData,
        seed: int,
        device: torch.device,
        folder: StudyDir | None = None,
    ) -> TrainableModel:
        torch.manual_seed(seed)
        method = recipe.methods[name]
        if method.kind == "linear":
            module: torch.nn.Module = torch.nn.Linear(7, 10)
        else:
            hidden = torch.nn.Linear(7, method.hidden_size)
            output = torch.nn.Linear(method.hidden_size, 10)
            module = torch.nn.Sequential(hidden, torch.nn.ReLU(), output)
        names = frozenset(parameter for parameter, _ in module.named_parameters())
        return TrainableModel(module.to(device), names, method.learning_rate)

    def collate(
        self, model: TrainableModel, data: DigitsData, split: str, rows: list[int], limit: int
    ) -> list[DigitsBatch]:
        segments, labels = data.splits[split]
        groups = [rows[start : start + limit] for start in range(0, len(rows), limit)]
        return [
            DigitsBatch(segments[group], labels[group], TokenCounts(*[len(group)] * 3))
            for group in groups
        ]

    def loss(self, model: TrainableModel, batch: DigitsBatch) -> LossSum:
        logits = model.module(batch.segments)
        return LossSum(F.cross_entropy(logits, batch.labels, reduction="sum"), len(batch.labels))

    def validate(
        self, model: TrainableModel, data: DigitsData, recipe: DigitsRecipe
    ) -> dict[str, float]:
        return self._metrics(model, data, "validation")

    def evaluate(
        self,
        model: TrainableModel,
        data: DigitsData,
        recipe: DigitsRecipe,
        folder: Path,
        ledger: Ledger,
    ) -> dict[str, Any]:
        with ledger.phase("evaluate"):
            return {"split": "test", **self._metrics(model, data, "test")}

    def _metrics(self, model: TrainableModel, data: DigitsData, split: str) -> dict[str, float]:
        segments, labels = data.splits[split]
        logits = model.module(segments.to(next(model.module.parameters()).device)).float().cpu()
        accuracy = (logits.argmax(1) == labels).float().mean()
        return {"loss": float(F.cross_entropy(logits, labels)), "accuracy": float(accuracy)}
