"""Each step's loss and gradient norm: read when the device has them, written down, and looked at.

Asking a GPU for a number stops the host until the GPU is idle, and then the GPU waits for the host. So a step's figures
are read after the next step is under way, where the optimizer can leave a bad step out by itself.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from tarazu.engine.counts import TokenCounts
from tarazu.errors import TarazuError

MOST_SKIPPED = 10  # steps in a row without a finite gradient before the run is given up


class DeviceTimestamp:
    """A point in the device's time, which on a GPU is not the host's: work is ordered long before it is done."""

    def __init__(self, device: torch.device):
        self.host = time.perf_counter()
        self.event = None
        if device.type == "cuda":
            self.event = torch.cuda.Event(enable_timing=True)
            self.event.record()

    def until(self, later: DeviceTimestamp) -> float:
        """Seconds; the device must have passed both."""
        if self.event is None:
            return later.host - self.host
        return self.event.elapsed_time(later.event) / 1000


@dataclass(frozen=True)
class PendingStep:
    """A step that is done or under way; `measured` holds its loss and gradient norm, on the host once `ended` has passed."""

    step: int
    tokens: int
    epoch: float
    rate: float
    counts: TokenCounts
    measured: torch.Tensor
    began: DeviceTimestamp
    ended: DeviceTimestamp


class StepMetrics:
    """Reads steps in their order.

    Args:
        position: its `skipped` counts the steps left out in a row.
        losses: the last ones, for noticing a jump.
        write: writes an event, as `EventLog.write`.
        warn: notes a warning (step, kind, text).
    """

    def __init__(
        self,
        position: Any,
        losses: deque[float],
        write: Callable,
        warn: Callable[[int, str, str], None],
    ):
        self.position, self.losses, self.write, self.warn = position, losses, write, warn
        self.waiting: PendingStep | None = None
        self.shown = ""

    def add(self, done: PendingStep, late: bool) -> None:
        """Takes a step in. `late`: only the step before it is read now."""
        before, self.waiting = self.waiting, done
        self._read(before)
        if not late:
            self.catch_up()

    def catch_up(self) -> None:
        """Reads what is not yet read."""
        last, self.waiting = self.waiting, None
        self._read(last)

    def _read(self, done: PendingStep | None) -> None:
        if done is None:
            return
        if done.ended.event is not None:
            done.ended.event.synchronize()
        loss, norm = done.measured.tolist()
        seconds = done.began.until(done.ended)
        if math.isfinite(norm) and math.isfinite(loss):
            self.position.skipped = 0
        else:
            self._skipped(done.step, loss, norm)
        rate = done.counts.tokens / seconds
        where = {"step": done.step, "tokens": done.tokens, "epoch": done.epoch}
        self.write(
            "step",
            **where,
            loss=loss,
            learning_rate=done.rate,
            grad_norm=norm,
            seconds=seconds,
            tokens_per_second=rate,
        )
        self._notice_spike(done.step, loss)
        self.shown = f"loss {loss:.3f}  {rate:,.0f} tokens/s"

    def _skipped(self, step: int, loss: float, norm: float) -> None:
        self.position.skipped += 1
        self.warn(
            step - 1, "skipped", f"step {step} not applied: loss {loss}, gradient norm {norm}"
        )
        if self.position.skipped >= MOST_SKIPPED:
            raise TarazuError(
                f"{MOST_SKIPPED} steps in a row without a finite gradient",
                hint="lower the learning rate, or precision: float32",
            )

    def _notice_spike(self, step: int, loss: float) -> None:
        if len(self.losses) == self.losses.maxlen:
            values = torch.tensor(list(self.losses))
            if loss > max(1.3 * values.mean(), values.mean() + 4 * values.std()):
                self.warn(step, "spike", f"loss {loss:.3f} after a mean of {values.mean():.3f}")
        if math.isfinite(loss):
            self.losses.append(loss)
