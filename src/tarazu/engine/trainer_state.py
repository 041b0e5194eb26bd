"""The numbers that a trainer needs to resume; every checkpoint holds them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class TrainerState:
    """Where a run stands.

    Args:
        step: finished optimizer steps.
        tokens: tokens of all finished steps.
        micro_batch_tokens: maximum tokens in a micro-batch; halved when memory runs out.
        skipped: consecutive steps that were skipped for a gradient that is not finite.
        best: the best value of the monitored metric, signed so that lower is better.
        best_epoch: epoch of the step with the best value.
        validations_without_improvement: consecutive validations that were not the best.
        validated_step: step of the last validation; -1 before the first one.
        epoch: epoch of the last step.
    """

    step: int = 0
    tokens: int = 0
    micro_batch_tokens: int = 0
    skipped: int = 0
    best: float | None = None
    best_epoch: int = 0
    validations_without_improvement: int = 0
    validated_step: int = -1
    epoch: int = 0
