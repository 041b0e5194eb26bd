"""The training loop of every method and every task.

One optimizer step takes `batch_rows` rows. They are cut into micro-batches that fit into memory.
The loss is summed over all of them and divided by the supervised tokens of the whole step, so the
gradient does not depend on the cut. `gradients.py` handles running out of memory. A checkpoint
holds the trainer's state, weights, optimizer,
random states, ledger and the length of the event log; `train` resumes the newest intact one.
"""

from __future__ import annotations

import contextlib
import time
from typing import Any

import torch

from tarazu.engine import checkpoint, weights
from tarazu.engine import optimizer as optim
from tarazu.engine.ema import ExponentialMovingAverage
from tarazu.engine.event_log import EventLog
from tarazu.engine.gradients import GradientAccumulator
from tarazu.engine.ledger import Ledger
from tarazu.engine.lr_schedule import lr_factor_in_phase
from tarazu.engine.prefetch import BatchPrefetcher
from tarazu.engine.progress import ProgressBar, log
from tarazu.engine.row_sampler import make_row_sampler
from tarazu.engine.signals import StopSignals
from tarazu.engine.step_metrics import DeviceTimestamp, PendingStep, StepMetrics
from tarazu.engine.task import Data, Task
from tarazu.engine.trainable import Batch, TrainableModel
from tarazu.engine.trainer_state import TrainerState
from tarazu.engine.validation import Validator
from tarazu.recipe.schema import Method, Recipe
from tarazu.storage.run_folder import RunDir

SAVE_SECONDS = 120.0  # between checkpoints, besides the one at each validation


def train(
    task: Task,
    model: TrainableModel,
    data: Data,
    recipe: Recipe,
    method: Method,
    run: RunDir,
    seed: int,
    ledger: Ledger,
    stop: StopSignals,
    sampled: bool = True,
) -> None:
    """Train a model to the end of the budget and write `weights.safetensors` to the run's folder.

    Args:
        task: collates batches, computes losses, validates.
        model: trained in place. It ends with the weights that were kept.
        data: the task's data.
        recipe: its budget is the length of the training.
        method: settings of the method.
        run: the run's folder. The newest intact checkpoint in it is resumed.
        seed: seed of the order of rows and of all random numbers.
        ledger: measures time, memory and tokens.
        stop: signals that end the training after the current step.
        sampled: generate sample outputs at every validation, and validate before the first step. A
            hyperparameter search does neither.

    Raises:
        Stopped: a signal came; a checkpoint is written.
        TarazuError: gradients stay infinite, one row does not fit into memory, or the disk is full.
    """
    trainer = Trainer(task, model, data, recipe, method, run, seed, ledger, stop, sampled)
    with contextlib.closing(trainer):
        trainer.start()
        with stop.deferred():
            trainer.run_budget()
        trainer.finish()


class Trainer:
    """One training run. See `train` for the arguments."""

    def __init__(
        self,
        task: Task,
        model: TrainableModel,
        data: Data,
        recipe: Recipe,
        method: Method,
        run: RunDir,
        seed: int,
        ledger: Ledger,
        stop: StopSignals,
        sampled: bool,
    ):
        self.task, self.model, self.data = task, model, data
        self.recipe, self.budget, self.run = recipe, recipe.budget, run
        self.ledger, self.stop, self.device = ledger, stop, ledger.device
        self.sampled = sampled
        self.sampler = make_row_sampler(task, data, method, self.budget, seed)
        self.optimizer = optim.build(model, method)
        decay = method.ema_decay
        self.average = ExponentialMovingAverage(model, decay) if decay else None
        self.prefetcher = BatchPrefetcher(self.collate)
        self.state = TrainerState(micro_batch_tokens=self.budget.micro_batch_tokens)
        self.last_step_end: DeviceTimestamp | None = None
        self.saved_step, self.saved_time = -1, time.monotonic()
        self.checkpoint_folder = run.path / "checkpoint"
        self.events: EventLog | None = None
        torch.manual_seed(seed)

    # --- start and end ---

    def start(self) -> None:
        """Open the event log, resume from a checkpoint if there is one, and build the parts.

        Raises:
            TarazuError: there are checkpoints, and all are damaged.
        """
        saved = checkpoint.load(self.checkpoint_folder)
        if saved is None:
            self.events = EventLog(self.run.path / "events.jsonl")
        else:
            self.resume(*saved)
        self.metrics = StepMetrics(self.state, self.events.write, self.warn_at_step)
        self.gradients = GradientAccumulator(
            self.task,
            self.model,
            self.optimizer,
            self.budget,
            self.device,
            self.prefetcher,
            self.state,
            self.run,
            self.warn,
        )
        self.validator = Validator(
            self.task,
            self.model,
            self.data,
            self.recipe,
            self.run,
            self.ledger,
            self.state,
            self.events,
            self.warn,
            self.sampled,
        )

    def resume(
        self,
        tensors: checkpoint.TensorGroups,
        state: dict[str, Any],
        damaged_checkpoints: list[str],
    ) -> None:
        """Continue from a checkpoint.

        Args:
            tensors: `weights`, `optimizer`, `random` and `average`, each of any shapes by name.
            state: the rest of the checkpoint, as `save` writes it.
            damaged_checkpoints: a message for each newer checkpoint that is damaged.
        """
        weights.restore(self.model, tensors["weights"])
        optim.load_state(self.optimizer, tensors.get("optimizer", {}))
        if self.average:
            self.average.load(tensors["average"])
        torch.set_rng_state(tensors["random"]["cpu"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(tensors["random"]["cuda"], self.device)
        self.state = TrainerState(**state["trainer"])
        self.ledger.restore(state["ledger"])
        self.events = EventLog(self.run.path / "events.jsonl", state["events"])
        self.saved_step = self.state.step
        for message in damaged_checkpoints:
            self.warn("checkpoint", message)
        log(f"{self.run.name}: resumes at step {self.state.step}")

    def save(self) -> None:
        """Write a checkpoint, unless the last one is of this step.

        Raises:
            TarazuError: the disk is full.
        """
        if self.saved_step == self.state.step:
            return
        with self.ledger.phase("checkpoint"):
            random = {"cpu": torch.get_rng_state()}
            if self.device.type == "cuda":
                random["cuda"] = torch.cuda.get_rng_state(self.device)
            tensors = {
                "weights": self.model.trainable(),
                "optimizer": optim.state_tensors(self.optimizer),
                "random": random,
            }
            if self.average:
                tensors["average"] = self.average.mean
            state = {
                "trainer": vars(self.state),
                "events": self.events.size(),
                "ledger": self.ledger.as_json(),
            }
            checkpoint.save(self.checkpoint_folder, self.state.step, tensors, state)
        self.saved_step, self.saved_time = self.state.step, time.monotonic()

    def finish(self) -> None:
        """Give the model the weights that the budget keeps, and write them."""
        self.model.epoch = self.state.epoch
        if self.average:
            self.average.copy_to_model()
        if self.validator.restore_best():
            self.model.epoch = self.state.best_epoch
        weights.write(self.run, self.task.weights(self.model))

    def close(self) -> None:
        """End the prefetching thread and close the event log."""
        self.prefetcher.close()
        if self.events:
            self.events.close()

    # --- the loop ---

    def run_budget(self) -> None:
        """Train until the budget is used or patience has run out. Raises as `train`."""
        with ProgressBar(f"{self.run.name} seed {self.run.seed}") as bar:
            # The untrained model is the first point of the curves.
            if self.state.validated_step < 0 and self.sampled:
                self.validate()
            while not self.is_finished():
                # Steps, and nothing else, count as training in the ledger.
                with self.ledger.phase("train"):
                    self.run_until_due(bar)
                if self.is_validation_due() or self.is_finished():
                    self.validate()
                # Save after the validation, so that a resumed run does not repeat it.
                self.save()
                # Only here may a signal end the run: everything is on disk.
                self.stop.check()

    def run_until_due(self, bar: ProgressBar) -> None:
        """Take steps until a validation, a checkpoint or the end is due, or a signal came."""
        self.model.module.train()
        while True:
            self.step(bar)
            save_is_due = time.monotonic() - self.saved_time > SAVE_SECONDS
            if self.is_validation_due() or self.is_finished() or self.stop.received or save_is_due:
                self.metrics.flush()
                self.last_step_end = None
                return

    def fraction(self) -> float:
        """The part of the budget that is used."""
        return self.state.fraction(self.budget, self.sampler.steps_per_epoch)

    def is_finished(self) -> bool:
        """Whether the budget is used or patience has run out."""
        return self.state.is_finished(self.budget, self.sampler.steps_per_epoch)

    def is_validation_due(self) -> bool:
        """Whether the last step ended an interval between validations."""
        return self.state.is_validation_due(self.budget, self.sampler.steps_per_epoch)

    def validate(self) -> None:
        """Validate the weights that the method keeps: the averaged ones if it averages."""
        with self.average.swapped_in() if self.average else contextlib.nullcontext():
            self.validator.run_validation(self.sampler.epoch(self.state.step))

    # --- one step ---

    def step(self, bar: ProgressBar) -> None:
        """One optimizer step.

        Raises:
            TarazuError: one row does not fit into memory, or gradients stay infinite.
        """
        # A new phase may start from other weights.
        self.start_phase_if_due()
        # 1. On the device, this step starts where the last one ended. What is in between, such as
        #    waiting for batches, belongs to this step.
        began, self.last_step_end = self.last_step_end or DeviceTimestamp(self.device), None
        # 2. Learning rates. Groups outside their epochs get no gradients.
        learning_rate = self.set_learning_rates()
        # 3. Forward and backward passes, then the update, unless it is not finite.
        loss_and_norm, counts = self.gradients.forward_backward_with_oom_retry()
        optim.step_if_finite(self.optimizer, loss_and_norm)
        self.optimizer.zero_grad(set_to_none=True)
        # 4. Count the step and update the average of the weights.
        self.state.advance(counts.tokens, self.model.epoch)
        self.ledger.counts = self.ledger.counts + counts
        self.ledger.steps = self.state.step
        if self.average:
            self.average.update(self.state.step)
        # 5. Copy loss and norm to the host, without waiting. Ordered here, the copy ends with this
        #    step; ordered when it is read, it would wait for the next step too.
        on_host = loss_and_norm.to("cpu", non_blocking=True)
        self.last_step_end = DeviceTimestamp(self.device)
        pending = PendingStep(
            step=self.state.step,
            tokens=self.state.tokens,
            epoch=self.sampler.epoch(self.state.step),
            learning_rate=learning_rate,
            counts=counts,
            loss_and_norm=on_host,
            began=began,
            ended=self.last_step_end,
        )
        self.metrics.add(pending, read_late=optim.skips_nonfinite_on_device(self.optimizer))
        bar.at(min(1.0, self.fraction()), self.metrics.status)

    def start_phase_if_due(self) -> None:
        """At the start of a phase with `from_best`, load the best weights or the average."""
        first_steps = {
            phase.from_epoch * self.sampler.steps_per_epoch
            for phase in self.model.phases
            if phase.from_best
        }
        if self.state.step not in first_steps:
            return
        if self.validator.restore_best():
            best_epoch = self.state.best_epoch + 1
            log(f"{self.run.name}: continues from the best weights so far, of epoch {best_epoch}")
        elif self.average:
            self.average.copy_to_model()
        if self.average:
            self.average.reset()

    def set_learning_rates(self) -> float:
        """Set the learning rates of the step by the schedule; return that of the first group."""
        epoch = self.sampler.epoch(self.state.step)
        self.model.fraction, self.model.epoch = self.fraction(), int(epoch)
        factor = lr_factor_in_phase(
            self.model.fraction,
            epoch,
            self.model.phases,
            self.budget.schedule,
            self.budget.warmup_ratio,
        )
        return optim.set_learning_rates(self.optimizer, factor, self.model.epoch)

    def collate(self, step: int, limit: int) -> list[Batch]:
        """The micro-batches of a step, of at most `limit` tokens. Runs in the prefetch thread."""
        rows = self.sampler.rows_of_step(step)
        return self.task.collate(self.model, self.data, "train", rows, limit)

    def warn(self, kind: str, text: str) -> None:
        """Log a warning and write it as an event of the current step."""
        self.warn_at_step(self.state.step, kind, text)

    def warn_at_step(self, step: int, kind: str, text: str) -> None:
        """Log a warning and write it as an event of `step`."""
        log(f"{self.run.name}: {text}")
        self.events.write("warning", step=step, kind=kind, text=text)
