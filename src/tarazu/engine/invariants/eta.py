"""How long the invariants take, told as they go, with an estimate of what is left from the methods already done."""

from __future__ import annotations

import time

from tarazu.engine.invariants.fixture import CheckResult
from tarazu.engine.progress import log


class CheckTimer:
    """One round of checks over several methods. `record_check` is called after each check."""

    def __init__(self, title: str, methods: int):
        self.title, self.methods, self.number = title, methods, 0
        self.totals: list[float] = []  # seconds of each method that has something to check
        self.spent, self.name, self.last = 0.0, "", time.monotonic()

    def begin(self, name: str) -> None:
        """The next method; building it counts to its first check."""
        self.number, self.name, self.spent, self.last = self.number + 1, name, 0.0, time.monotonic()

    def record_check(self, check: CheckResult) -> float:
        """Says the check's verdict and what is left; gives the seconds that it took."""
        now = time.monotonic()
        seconds, self.last = now - self.last, now
        self.spent += seconds
        if check.verdict != "not applicable":
            log(
                f"{self.title}, {self.name} ({self.number} of {self.methods}): {check.name}: {check.verdict}, {seconds:.1f} s{self.eta_text()}"
            )
        return round(seconds, 3)

    def end(self, checks: list[dict]) -> None:
        """The method is done."""
        if any(check["verdict"] != "not applicable" for check in checks):
            self.totals.append(self.spent)

    def eta_text(self) -> str:
        """Of this round, by the mean of the methods before; nothing while the first one runs."""
        if not self.totals:
            return ""
        mean = sum(self.totals) / len(self.totals)
        return f"; about {max(0.0, mean * (self.methods - self.number + 1) - self.spent):.0f} s left of this round"
