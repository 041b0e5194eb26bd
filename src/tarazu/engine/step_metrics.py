"""Loss and gradient norm of each step: read from the device, logged, and checked.

Reading a number from a GPU makes the host wait until the GPU is idle, and then the GPU waits for
the host. If the optimizer can skip a bad step by itself, the numbers of a step are therefore read
one step late, when the next step has been launched.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from tarazu.engine.counts import TokenCounts
from tarazu.engine.trainer_state import TrainerState
from tarazu.errors import TarazuError

MAX_SKIPPED = 10  # consecutive steps without a finite gradient before the run fails
SPIKE_WINDOW = 20  # recent losses that a loss spike is measured against


class DeviceTimestamp:
    """A point in the device's own time. A GPU runs work long after the host has launched it."""

    def __init__(self, device: torch.device):
        self.host_seconds = time.perf_counter()
        self.event: torch.cuda.Event | None = None
        if device.type == "cuda":
            self.event = torch.cuda.Event(enable_timing=True)
            self.event.record()

    def seconds_until(self, later: DeviceTimestamp) -> float:
        """Seconds between two points; the device must have passed both."""
        if self.event is None:
            return later.host_seconds - self.host_seconds
        return self.event.elapsed_time(later.event) / 1000


@dataclass(frozen=True)
class PendingStep:
    """A step that the device may still be working on.

    Args:
        step: number of the step, from 1.
        tokens: tokens of all steps so far, with this one.
        epoch: passes over the rows so far.
        learning_rate: rate of the first parameter group.
        counts: sizes of the step's rows.
        loss_and_norm: loss and gradient norm, (2,). On the host once the device has passed `ended`.
        began: when the device began the step.
        ended: when the device ended the step.
    """

    step: int
    tokens: int
    epoch: float
    learning_rate: float
    counts: TokenCounts
    loss_and_norm: torch.Tensor
    began: DeviceTimestamp
    ended: DeviceTimestamp


class StepMetrics:
    """Read the steps in their order.

    Args:
        state: holds the number of consecutive skipped steps, and the recent losses.
        write_event: writes an event to the log, as `EventLog.write`.
        warn: writes a warning: step, kind, text.
    """

    def __init__(
        self,
        state: TrainerState,
        write_event: Callable[..., None],
        warn: Callable[[int, str, str], None],
    ):
        self.state, self.write_event, self.warn = state, write_event, warn
        self.pending: PendingStep | None = None
        self.status = ""  # of the last step that was read, for the progress bar

    def add(self, step: PendingStep, read_late: bool) -> None:
        """Add a step.

        Args:
            step: the step that was launched.
            read_late: read only the step before; `flush` or the next `add` reads this one.

        Raises:
            TarazuError: too many consecutive steps had no finite gradient.
        """
        previous, self.pending = self.pending, step
        self._read(previous)
        if not read_late:
            self.flush()

    def flush(self) -> None:
        """Read the pending step, if there is one.

        Raises:
            TarazuError: too many consecutive steps had no finite gradient.
        """
        last, self.pending = self.pending, None
        self._read(last)

    def _read(self, step: PendingStep | None) -> None:
        """Wait for the step, write its event and check its numbers."""
        if step is None:
            return
        if step.ended.event is not None:
            step.ended.event.synchronize()
        loss, norm = step.loss_and_norm.tolist()
        seconds = step.began.seconds_until(step.ended)
        tokens_per_second = step.counts.tokens / seconds
        self._count_skipped(step.step, loss, norm)
        self.write_event(
            "step",
            step=step.step,
            tokens=step.tokens,
            epoch=step.epoch,
            loss=loss,
            learning_rate=step.learning_rate,
            grad_norm=norm,
            seconds=seconds,
            tokens_per_second=tokens_per_second,
        )
        self._warn_of_spike(step.step, loss)
        self.status = f"loss {loss:.3f}  {tokens_per_second:,.0f} tokens/s"

    def _count_skipped(self, step: int, loss: float, norm: float) -> None:
        """Warn of a step that the optimizer skipped; fail after many in a row."""
        if math.isfinite(norm) and math.isfinite(loss):
            self.state.skipped = 0
            return
        self.state.skipped += 1
        text = f"step {step} not applied: loss {loss}, gradient norm {norm}"
        self.warn(step - 1, "skipped", text)
        if self.state.skipped >= MAX_SKIPPED:
            raise TarazuError(
                f"{MAX_SKIPPED} steps in a row without a finite gradient",
                hint="lower the learning rate, or precision: float32",
            )

    def _warn_of_spike(self, step: int, loss: float) -> None:
        """Warn of a loss more than 30% and four standard deviations above the recent mean."""
        recent_losses = self.state.recent_losses
        if len(recent_losses) == SPIKE_WINDOW:
            losses = torch.tensor(recent_losses)
            mean = losses.mean()
            if loss > max(1.3 * mean, mean + 4 * losses.std()):
                self.warn(step, "spike", f"loss {loss:.3f} after a mean of {mean:.3f}")
        if math.isfinite(loss):
            self.state.recent_losses = [*recent_losses, loss][-SPIKE_WINDOW:]
