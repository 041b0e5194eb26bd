"""Log lines for the checks as they run, with an estimate of the remaining time."""

from __future__ import annotations

import time
from typing import Any

from tarazu.engine.invariants.fixture import CheckResult
from tarazu.engine.progress import log

NOT_APPLICABLE = "not applicable"


class CheckTimer:
    """Time one round of checks over several methods.

    The estimate of the remaining time is the mean of the methods that are done. Call `begin` and
    `end` for each method, and `record_check` after each check.

    Args:
        title: name of the round.
        num_methods: number of methods in the round.
    """

    def __init__(self, title: str, num_methods: int):
        self.title, self.num_methods = title, num_methods
        self.number, self.name = 0, ""  # of the current method
        self.seconds = 0.0  # of the current method so far
        self.last = time.monotonic()
        self.seconds_per_method: list[float] = []  # of finished methods with applicable checks

    def begin(self, name: str) -> None:
        """Start the next method. The time to build it counts for its first check."""
        self.number, self.name = self.number + 1, name
        self.seconds, self.last = 0.0, time.monotonic()

    def record_check(self, check: CheckResult) -> float:
        """Log the verdict of a check and the remaining time; return the seconds that it took."""
        now = time.monotonic()
        seconds, self.last = now - self.last, now
        self.seconds += seconds
        if check.verdict != NOT_APPLICABLE:
            log(
                f"{self.title}, {self.name} ({self.number} of {self.num_methods}): "
                f"{check.name}: {check.verdict}, {seconds:.1f} s{self.eta_text()}"
            )
        return round(seconds, 3)

    def end(self, checks: list[dict[str, Any]]) -> None:
        """Finish the method, whose checks are given as in `verify.json`."""
        if any(check["verdict"] != NOT_APPLICABLE for check in checks):
            self.seconds_per_method.append(self.seconds)

    def eta_text(self) -> str:
        """The remaining time of the round; empty while the first method runs."""
        if not self.seconds_per_method:
            return ""
        mean = sum(self.seconds_per_method) / len(self.seconds_per_method)
        methods_left = self.num_methods - self.number + 1  # with the current one
        seconds_left = max(0.0, mean * methods_left - self.seconds)
        return f"; about {seconds_left:.0f} s left of this round"
