"""Where a run stands: the numbers that a trainer needs to resume. Every checkpoint holds them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from tarazu.recipe.schema import Budget


@dataclass
class TrainerState:
    """Counters of a run.

    Args:
        step: finished optimizer steps.
        tokens: tokens of all finished steps.
        tokens_of_last_step: tokens of the last step.
        micro_batch_tokens: maximum tokens in a micro-batch; halved when memory runs out.
        recent_losses: the last finite losses, oldest first; a loss spike is far above them.
        skipped: consecutive steps that were skipped for a gradient that is not finite.
        best: the best value of the monitored metric, signed so that lower is better.
        best_epoch: epoch of the step with the best value.
        validations_without_improvement: consecutive validations that were not the best.
        validated_step: step of the last validation; -1 before the first one.
        epoch: epoch of the last step.
    """

    step: int = 0
    tokens: int = 0
    tokens_of_last_step: int = 0
    micro_batch_tokens: int = 0
    recent_losses: list[float] = field(default_factory=list)
    skipped: int = 0
    best: float | None = None
    best_epoch: int = 0
    validations_without_improvement: int = 0
    validated_step: int = -1
    epoch: int = 0

    def fraction(self, budget: Budget, steps_per_epoch: int) -> float:
        """The part of the budget that is used; it may exceed 1 by a part of a step."""
        if budget.tokens:
            return self.tokens / budget.tokens
        return self.step / math.ceil(budget.epochs * steps_per_epoch)

    def is_finished(self, budget: Budget, steps_per_epoch: int) -> bool:
        """Whether the budget is used or patience has run out."""
        if budget.patience is not None and self.validations_without_improvement >= budget.patience:
            return True
        return self.fraction(budget, steps_per_epoch) >= 1

    def is_validation_due(self, budget: Budget, steps_per_epoch: int) -> bool:
        """Whether the last step ended an epoch, or passed a multiple of `evaluate_every` tokens.

        With a token budget and no `evaluate_every`, every tenth of the budget counts.
        """
        if self.step == self.validated_step:
            return False
        interval = budget.evaluate_every
        if interval is None and budget.tokens:
            interval = max(1, budget.tokens // 10)
        if interval is None:
            return self.step % steps_per_epoch == 0
        tokens_before = self.tokens - self.tokens_of_last_step
        return self.tokens // interval > tokens_before // interval

    def advance(self, tokens: int, epoch: int) -> None:
        """Count a finished step of so many tokens in this epoch."""
        self.step += 1
        self.epoch = epoch
        self.tokens += tokens
        self.tokens_of_last_step = tokens
