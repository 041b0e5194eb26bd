"""Validation during training: metrics, sample outputs, and the best weights so far."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from safetensors.torch import save as tensor_bytes

from tarazu.engine import weights
from tarazu.engine.event_log import EventLog
from tarazu.engine.ledger import Ledger
from tarazu.engine.precision import autocast
from tarazu.engine.progress import log
from tarazu.engine.task import Data, Task
from tarazu.engine.trainable import TrainableModel
from tarazu.engine.trainer_state import TrainerState
from tarazu.errors import TarazuError
from tarazu.recipe.schema import Recipe
from tarazu.storage.atomic_io import write_atomic
from tarazu.storage.run_folder import RunDir


@dataclass
class Validator:
    """Validate a model, and keep its best weights in `best.safetensors`.

    Args:
        task: measures the metrics and generates samples.
        model: the model that is trained.
        data: the task's data.
        recipe: its budget names the monitored metric.
        run: the run's folder.
        ledger: times the validation.
        state: holds the best value so far.
        events: gets the results.
        warn: writes a warning: kind, text.
        sampled: generate sample outputs.
    """

    task: Task
    model: TrainableModel
    data: Data
    recipe: Recipe
    run: RunDir
    ledger: Ledger
    state: TrainerState
    events: EventLog
    warn: Callable[[str, str], None]
    sampled: bool

    def run_validation(self, epoch: float) -> None:
        """Measure the metrics, generate samples, write both, and keep the weights if they are best.

        Args:
            epoch: passes over the rows so far.

        Raises:
            TarazuError: the monitored metric is not measured, or the disk is full.
        """
        self.model.module.eval()
        samples: list[dict[str, Any]] = []
        with torch.no_grad(), autocast(self.recipe.budget, self.ledger.device):
            with self.ledger.phase("validate"):
                metrics = self.task.validate(self.model, self.data, self.recipe)
            with self.ledger.phase("generate"):
                if self.sampled:
                    samples = self.task.sample(self.model, self.data, self.recipe, final=False)
        position = {"step": self.state.step, "tokens": self.state.tokens, "epoch": epoch}
        self.events.write("validation", **position, **metrics)
        if samples:
            self.events.write("sample", **position, samples=samples)
        text = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        log(f"{self.run.name}: step {self.state.step}, {text}")
        self.state.validated_step = self.state.step
        self.update_best(metrics)

    def update_best(self, metrics: dict[str, float]) -> None:
        """Compare the monitored metric with the best so far, and save the weights if it is better.

        Args:
            metrics: the metrics of a validation.

        Raises:
            TarazuError: the monitored metric is not measured, or the disk is full.
        """
        budget, state = self.recipe.budget, self.state
        if budget.monitor not in metrics:
            raise TarazuError(
                f"budget.monitor is {budget.monitor!r}, which no validation measures",
                hint=f"one of: {', '.join(metrics)}",
            )
        # Only the loss is better when it is lower.
        sign = 1 if budget.monitor == "loss" else -1
        value = sign * metrics[budget.monitor]
        if state.best is None or value < state.best:
            state.best, state.best_epoch = value, state.epoch
            state.validations_without_improvement = 0
            if budget.keep == "best" and state.step:
                write_atomic(self._best_path, tensor_bytes(self.task.weights(self.model)))
            return
        state.validations_without_improvement += 1
        validations = state.validations_without_improvement
        if budget.patience and validations >= budget.patience:
            text = f"{budget.monitor} has not improved in {validations} validations"
            self.warn("early_stop", text)

    def restore_best(self) -> bool:
        """Load the best weights so far into the model, if the budget keeps them and there are any.

        Returns:
            Whether they were loaded.
        """
        if self.recipe.budget.keep != "best" or not self._best_path.exists():
            return False
        weights.restore(self.model, load_file(self._best_path))
        return True

    @property
    def _best_path(self) -> Path:
        return self.run.path / "best.safetensors"
