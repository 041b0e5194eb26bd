"""The training loop that every method and both tasks share.

One optimizer step is `batch_rows` rows, however they are cut into micro-batches: the loss is summed over them and divided
by the supervised tokens of the whole step, so the gradient does not depend on the cut. Position, optimizer, random states,
ledger and the length of the event log are in every checkpoint; `fit` goes on from the newest one that is whole.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from safetensors.torch import load_file
from safetensors.torch import save as tensor_bytes

from tarazu.engine import checkpoint, weights
from tarazu.engine import optimizer as optim
from tarazu.engine.counts import TokenCounts
from tarazu.engine.cuda_graphs import recorder
from tarazu.engine.cuda_graphs.memory import is_out_of_memory
from tarazu.engine.ema import ExponentialMovingAverage
from tarazu.engine.event_log import EventLog
from tarazu.engine.ledger import Ledger
from tarazu.engine.lr_schedule import in_phases
from tarazu.engine.precision import autocast
from tarazu.engine.progress import ProgressBar, log
from tarazu.engine.row_sampler import make_row_sampler
from tarazu.engine.signals import StopSignals
from tarazu.engine.step_metrics import DeviceTimestamp, PendingStep, StepMetrics
from tarazu.engine.task import Data, Task
from tarazu.engine.trainable import TrainableModel
from tarazu.errors import TarazuError
from tarazu.recipe.schema import Budget, Method, Recipe
from tarazu.storage.atomic_io import write_atomic
from tarazu.storage.run_folder import RunDir

SAVE_SECONDS = 120.0  # between checkpoints, besides the one at each validation


@dataclass
class TrainerState:
    """Where a run stands: the part of a checkpoint's state that is plain numbers."""

    step: int = 0
    tokens: int = 0
    limit: int = 0
    skipped: int = 0
    best: float | None = None
    stale: int = 0
    validated: int = -1  # the step of the last validation
    epoch: int = 0  # of the last step
    best_epoch: int = 0  # of the step that made the best weights


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
    """Trains `model` in place, to the end of the budget, and leaves `weights.safetensors` in the run's folder.

    `sampled` asks for outputs at every validation, and for a validation before the first step; a search does without both.

    Raises:
        Stopped: after a checkpoint, when a signal came.
        TarazuError: when gradients stay infinite, one row does not fit into memory, or the disk is full.
    """
    with contextlib.closing(
        Trainer(task, model, data, recipe, method, run, seed, ledger, stop)
    ) as work:
        work.sampled = sampled
        work.start()
        with stop.patient():
            work.train()
        work.finish()


class Trainer:
    def __init__(self, task, model, data, recipe, method, run, seed, ledger, stop):
        self.task, self.model, self.data, self.recipe, self.run = task, model, data, recipe, run
        self.budget: Budget = recipe.budget
        self.ledger, self.stop, self.device = ledger, stop, ledger.device
        self.order = make_row_sampler(data, method, self.budget, seed)
        self.at = TrainerState(limit=self.budget.micro_batch_tokens)
        self.optimizer = optim.build(model, method)
        self.average = ExponentialMovingAverage(model, method.ema_decay) if method.ema_decay else None
        self.events: EventLog | None = None
        self.thread = ThreadPoolExecutor(1)
        self.ahead: tuple | None = None
        self.losses: deque[float] = deque(maxlen=20)
        self.last_tokens = 0
        self.edge: DeviceTimestamp | None = None  # where the last step ended
        self.sampled = True
        self.saved_step, self.saved_time = -1, time.monotonic()
        torch.manual_seed(seed)

    def close(self) -> None:
        self.thread.shutdown(wait=True, cancel_futures=True)
        if self.events:
            self.events.close()

    # --- start, validation, end ---

    def start(self) -> None:
        found = checkpoint.load(self.run.path / "checkpoint")
        if found is None:
            self.events = EventLog(self.run.path / "events.jsonl")
        else:
            self.go_on(*found)
        self.figures = StepMetrics(self.at, self.losses, self.events.write, self.warn_of)

    def go_on(self, tensors: dict, state: dict, complaints: list[str]) -> None:
        """From a checkpoint."""
        with torch.no_grad():
            for name, parameter in self.model.trainable().items():
                parameter.copy_(tensors["weights"][name])
        optim.load_state(self.optimizer, tensors.get("optimizer", {}))
        if self.average:
            self.average.restore(tensors["average"])
        torch.set_rng_state(tensors["random"]["cpu"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(tensors["random"]["cuda"], self.device)
        self.at = TrainerState(**state["position"])
        self.losses.extend(state["losses"])
        self.ledger.restore(state["ledger"])
        self.saved_step = self.at.step
        self.events = EventLog(self.run.path / "events.jsonl", state["events"])
        for text in complaints:
            self.warn("checkpoint", text)
        log(f"{self.run.name}: goes on at step {self.at.step}")

    def train(self) -> None:
        with ProgressBar(f"{self.run.name} seed {self.run.seed}") as bar:
            if self.at.validated < 0 and self.sampled:
                self.validate()
            while not self.over():
                with self.ledger.phase("train"):
                    self.stretch(bar)
                if self.due() or self.over():
                    self.validate()
                self.save()
                self.stop.check()

    def stretch(self, bar: ProgressBar) -> None:
        """Steps until something other than training is due."""
        self.model.module.train()
        while True:
            self.step(bar)
            late = time.monotonic() - self.saved_time > SAVE_SECONDS
            if self.due() or self.over() or self.stop.received or late:
                self.figures.catch_up()
                self.edge = None
                return

    def fraction(self) -> float:
        if self.budget.tokens:
            return self.at.tokens / self.budget.tokens
        return self.at.step / math.ceil(self.budget.epochs * self.order.steps_per_epoch)

    def over(self) -> bool:
        tired = self.budget.patience is not None and self.at.stale >= self.budget.patience
        return tired or self.fraction() >= 1

    def due(self) -> bool:
        """Whether a validation is due: each epoch, or each `evaluate_every` tokens; a tenth of a token budget else."""
        if self.at.step == self.at.validated:
            return False
        every = self.budget.evaluate_every or (
            self.budget.tokens and max(1, self.budget.tokens // 10)
        )
        if every:
            return self.at.tokens // every > (self.at.tokens - self.last_tokens) // every
        return self.at.step % self.order.steps_per_epoch == 0

    def validate(self) -> None:
        """Measures, samples, and keeps the best weights: the averaged ones where the method averages."""
        with self.average.in_place() if self.average else contextlib.nullcontext():
            self.measure()

    def measure(self) -> None:
        where = {
            "step": self.at.step,
            "tokens": self.at.tokens,
            "epoch": self.order.epoch(self.at.step),
        }
        self.model.module.eval()
        with torch.no_grad(), self.precision():
            with self.ledger.phase("validate"):
                figures = self.task.validate(self.model, self.data, self.recipe)
            with self.ledger.phase("generate"):
                samples = (
                    self.task.sample(self.model, self.data, self.recipe, final=False)
                    if self.sampled
                    else []
                )
        self.events.write("validation", **where, **figures)
        if samples:
            self.events.write("sample", **where, samples=samples)
        log(
            f"{self.run.name}: step {self.at.step}, "
            + ", ".join(f"{k} {v:.4g}" for k, v in figures.items())
        )
        self.at.validated = self.at.step
        self.judge(figures)

    def judge(self, figures: dict[str, float]) -> None:
        """The watched figure is better when lower only if it is the loss."""
        if self.budget.monitor not in figures:
            raise TarazuError(
                f"budget.monitor is {self.budget.monitor!r}, which no validation measures",
                hint=f"one of: {', '.join(figures)}",
            )
        value = figures[self.budget.monitor] * (1 if self.budget.monitor == "loss" else -1)
        if self.at.best is None or value < self.at.best:
            self.at.best, self.at.stale, self.at.best_epoch = value, 0, self.at.epoch
            if self.budget.keep == "best" and self.at.step:
                write_atomic(
                    self.run.path / "best.safetensors",
                    tensor_bytes(self.task.weights(self.model)),
                )
            return
        self.at.stale += 1
        if self.budget.patience and self.at.stale >= self.budget.patience:
            self.warn(
                "early_stop", f"{self.budget.monitor} has not improved in {self.at.stale} validations"
            )

    def finish(self) -> None:
        best = self.run.path / "best.safetensors"
        self.model.epoch = self.at.epoch
        if self.average:
            self.average.put(self.average.mean)
        if self.budget.keep == "best" and best.exists():
            weights.restore(self.model, load_file(best))
            self.model.epoch = self.at.best_epoch
        weights.write(self.run, self.task.weights(self.model))

    def warn(self, kind: str, text: str) -> None:
        self.warn_of(self.at.step, kind, text)

    def warn_of(self, step: int, kind: str, text: str) -> None:
        log(f"{self.run.name}: {text}")
        self.events.write("warning", step=step, kind=kind, text=text)

    # --- one step ---

    def step(self, bar: ProgressBar) -> None:
        self.begin_phase()
        began, self.edge = self.edge or DeviceTimestamp(self.device), None
        epoch = self.order.epoch(self.at.step)
        self.model.fraction, self.model.epoch = self.fraction(), int(epoch)
        factor = in_phases(
            self.model.fraction,
            epoch,
            self.model.phases,
            self.budget.schedule,
            self.budget.warmup_ratio,
        )
        rate = optim.set_learning_rates(self.optimizer, factor, self.model.epoch)
        measured, counts = self.gradients()
        optim.step_if_finite(self.optimizer, measured)
        self.optimizer.zero_grad(set_to_none=True)
        self.advance(counts)
        if self.average:
            self.average.update(self.at.step)
        told = measured.to(
            "cpu", non_blocking=True
        )  # now: asked for later, it would wait for the step after this one as well
        self.edge = DeviceTimestamp(
            self.device
        )  # a step begins where the last one ended: what is between them belongs to it
        done = PendingStep(
            self.at.step,
            self.at.tokens,
            self.order.epoch(self.at.step),
            rate,
            counts,
            told,
            began,
            self.edge,
        )
        self.figures.add(done, late=optim.skips_nonfinite_on_device(self.optimizer))
        bar.at(min(1.0, self.fraction()), self.figures.shown)

    def begin_phase(self) -> None:
        """At the first step of a phase that begins from the best weights so far, or from the mean, these are taken."""
        starts = {
            phase.from_epoch * self.order.steps_per_epoch
            for phase in self.model.phases
            if phase.from_best
        }
        if self.at.step not in starts:
            return
        best = self.run.path / "best.safetensors"
        if self.budget.keep == "best" and best.exists():
            weights.restore(self.model, load_file(best))
            log(
                f"{self.run.name}: goes on from the weights of epoch {self.at.best_epoch + 1}, the best so far"
            )
        elif self.average:
            self.average.put(self.average.mean)
        if self.average:
            self.average.begin()

    def advance(self, counts: TokenCounts) -> None:
        self.at.step += 1
        self.at.epoch = self.model.epoch
        self.at.tokens += counts.tokens
        self.last_tokens = counts.tokens
        self.ledger.counts = self.ledger.counts + counts
        self.ledger.steps = self.at.step

    def gradients(self) -> tuple[torch.Tensor, TokenCounts]:
        """[mean loss per supervised token, gradient norm before clipping], on the device, and counts of the step's rows.

        Out of memory: the micro-batch is halved and the step is done again, so the effective batch stays.
        """
        while True:
            batches = self.batches()
            try:
                return self.accumulate(batches)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                rows = max(batch.counts.rows for batch in batches)
            self.halve(rows)

    def accumulate(self, batches: list) -> tuple[torch.Tensor, TokenCounts]:
        supervised = max(1, sum(batch.counts.supervised for batch in batches))
        total, counts = torch.zeros((), device=self.device), TokenCounts()
        for batch in batches:
            with self.precision():
                loss = self.task.loss(self.model, batch.to(self.device))
            wanted = loss.total if loss.penalty is None else loss.total + loss.penalty
            (wanted / supervised).backward()
            total += loss.total.detach()
            counts = counts + batch.counts
            del loss, wanted  # the graph with them, before the next one is made
        parameters = [
            p
            for group in self.optimizer.param_groups
            for p in group["params"]
            if p.grad is not None
        ]
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.budget.max_grad_norm)
        return torch.stack([total.float() / supervised, norm.float()]), counts

    def batches(self) -> list:
        """This step's batches, prepared while the last step ran; the next step's are begun."""
        key = (self.at.step, self.at.limit)
        made = self.ahead[1] if self.ahead and self.ahead[0] == key else self.collate(*key)
        self.ahead = (
            (self.at.step + 1, self.at.limit),
            self.collate(self.at.step + 1, self.at.limit),
        )
        return made.result()

    def collate(self, step: int, limit: int):
        return self.thread.submit(
            self.task.collate, self.model, self.data, "train", self.order.rows_of_step(step), limit
        )

    def halve(self, rows: int) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        recorder.invalidate_all()  # those of larger passes would keep their room
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if rows <= 1:
            raise TarazuError(
                "one row alone does not fit into memory",
                location=str(self.run.path),
                hint="lower data.max_length, set budget.gradient_checkpointing: true, or take a smaller model",
            )
        self.at.limit = max(1, self.at.limit // 2)
        self.warn(
            "out_of_memory",
            f"out of memory: micro-batches of at most {self.at.limit} tokens from now on; the step's rows stay the same",
        )

    def precision(self):
        return autocast(self.budget, self.device)

    # --- checkpoints ---

    def save(self) -> None:
        if self.saved_step == self.at.step:
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
                "position": vars(self.at),
                "losses": list(self.losses),
                "events": self.events.size(),
                "ledger": self.ledger.as_json(),
            }
            checkpoint.save(self.run.path / "checkpoint", self.at.step, tensors, state)
        self.saved_step, self.saved_time = self.at.step, time.monotonic()
