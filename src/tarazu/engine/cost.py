"""What a task knows about its own cost: the estimate before a study is built on it.

`TaskCost` has a default for everything, so a task overrides only what it can tell better.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tarazu.engine.trainable import TrainableModel


@dataclass(frozen=True)
class CostOutline:
    """The cost of one run of one method, computed from the model's shape without running it.

    Args:
        train_flops: FLOPs of training.
        evaluate_flops: FLOPs of the evaluation's forward passes.
        decode_steps: generation steps.
        decode_flops: FLOPs of one generation step.
        decode_bytes: bytes that one generation step reads.
        fixed_bytes: memory of weights, gradients and optimizer state.
        activation_bytes: memory of activations at the peak.
        disk_bytes: weights and checkpoints on disk.
        flops_per_token: FLOPs of training per token, if known.
        notes: sentences for the user.
    """

    train_flops: float
    evaluate_flops: float
    decode_steps: float
    decode_flops: float
    decode_bytes: float
    fixed_bytes: float
    activation_bytes: float
    disk_bytes: float
    flops_per_token: float | None = None
    notes: tuple[str, ...] = ()


class TaskCost:
    """Cost of a task's methods. Subclasses override what they know."""

    has_shapes: bool = (
        False  # whether a pass of a new shape costs extra (compiling, CUDA-graph capture)
    )
    rows_differ: bool = (
        False  # whether rows differ in size, so that the heaviest step must be searched
    )

    def skip_reason(self, recipe: Any, name: str) -> str | None:
        """Why the method cannot be built before the study has run, or None."""
        return None

    def outline(
        self, recipe: Any, name: str, data: Any, device: torch.device
    ) -> CostOutline | None:
        """The cost of one run from the model's shape, or None where it cannot be computed.

        Raises:
            Exception: whatever building the method raises; the estimate reports it as the reason.
        """
        return None

    def with_longest_row(self, data: Any, rows: list[int]) -> list[int]:
        """The rows of a step, with the training split's longest row among them."""
        return rows

    def row_weight(self, data: Any, rows: Sequence[int]) -> int:
        """Size of these rows, in tokens."""
        return len(rows)

    def pass_shapes(
        self, model: TrainableModel, data: Any, recipe: Any, rows: list[int]
    ) -> set[int]:
        """Shapes of the passes of a step with these rows, for tasks with `has_shapes`."""
        return set()

    def reset(self, model: TrainableModel) -> None:
        """Forget captured or compiled passes, as if the model were newly built."""

    def phase_seconds(
        self, model: TrainableModel, data: Any, recipe: Any
    ) -> dict[str, float] | None:
        """Seconds by phase (`validate`, `sample`, `evaluate`, `generate`); None: time the task."""
        return None

    def answer_bytes(self, data: Any, recipe: Any, validations: int) -> int:
        """Bytes of a run's generated samples on disk, with this many validations."""
        return 0
