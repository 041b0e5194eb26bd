"""What every benchmark shares: the clock, medians with quartiles, the stamp of the machine, and the JSON record.

Nothing heavy is imported at the top, so that `STARTED` is the start of the process as nearly as Python allows, and nothing
of tarazu, so that a peer can be measured where tarazu is not installed.
"""

from __future__ import annotations

import time

STARTED = time.perf_counter()  # first of all imports: "seconds to the first step" counts from here

import contextlib  # noqa: E402
import json  # noqa: E402
import math  # noqa: E402
import os  # noqa: E402
import platform  # noqa: E402
import signal  # noqa: E402
from collections.abc import Callable, Iterator, Sequence  # noqa: E402
from datetime import UTC, datetime  # noqa: E402
from importlib.metadata import PackageNotFoundError, version  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("tarazu", "torch", "transformers", "peft", "trl", "liger-kernel", "datasets", "triton")
MATMUL = (
    8192  # side of the square bfloat16 product that gives a GPU's rate; 1024 in float32 on a CPU
)


# --- time ---


def since_start() -> float:
    """Seconds since the process began."""
    return time.perf_counter() - STARTED


def synchronize() -> None:
    """Waits for the GPU, if there is one: without it a clock shows when work was ordered, not when it was done."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def timed(work: Callable[[], Any]) -> float:
    """Seconds that `work` takes, the device's part included."""
    synchronize()
    began = time.perf_counter()
    work()
    synchronize()
    return time.perf_counter() - began


def alternate(contenders: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each contender, `repeats` times, in turns whose order is reversed each time: drift hits both alike."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(repeats):
        for name in list(contenders)[:: -1 if turn % 2 else 1]:
            seconds[name].append(timed(contenders[name]))
    return seconds


def spread(values: Sequence[float]) -> dict[str, float] | None:
    """Median and quartiles as {"median", "low", "high"}; None of nothing."""
    import numpy as np

    if not len(values):
        return None
    low, median, high = (float(v) for v in np.percentile(values, [25, 50, 75]))
    return {"median": median, "low": low, "high": high}


# --- the machine ---


def device_name() -> str:
    """The GPU's name, or the processor's with its threads."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    found = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        found = next(
            line.split(":", 1)[1].strip()
            for line in open("/proc/cpuinfo")
            if line.startswith("model name")
        )
    return f"{found}, {torch.get_num_threads()} threads"


def versions() -> dict[str, str]:
    """Of the packages that decide the speed, as far as they are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def peak_gib() -> float | None:
    """The most that torch's allocator held on the GPU since the start or the last reset; None on a CPU."""
    import torch

    return torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None


def matmul_rate() -> float | None:
    """FLOP/s of a large square product, the best of eight: what the device can do at most. None without room for it.

    On a GPU bfloat16 (the bound of the tables), on a CPU float32. The operands are random: with zeros a GPU draws less
    power and shows a rate that no model sees.
    """
    import torch

    gpu = torch.cuda.is_available()
    size, dtype = (MATMUL, torch.bfloat16) if gpu else (1024, torch.float32)
    try:
        a, b = (
            torch.randn(size, size, device="cuda" if gpu else "cpu", dtype=dtype) for _ in range(2)
        )
        return 2 * size**3 / min(timed(lambda: a @ b) for _ in range(8))
    except RuntimeError:
        return None


def bound_share(
    tokens_per_second: float | None, parameters: int, rate: float | None
) -> float | None:
    """The part of the bound that was reached: training adapters takes 4N FLOP a token (2N forward, 2N back to the inputs)."""
    return tokens_per_second * 4 * parameters / rate if tokens_per_second and rate else None


# --- the record ---


def record(
    table: str, who: str, setting: str, shape: str, group: str = "", **figures: Any
) -> dict[str, Any]:
    """One line of a table, with its machine, versions and date.

    Args:
        table: which table it belongs to (train, generation, cpu).
        who: tarazu, or the peer with its version.
        setting: how it was run, in a few words.
        shape: the model, as `shapes.SHAPES` or a recipe names it.
        group: what may be compared with what inside a table (the method, with or without checkpointing).
        figures: tokens_per_second, peak_gib, first_step_seconds, bound_share, loss, ... as far as they were measured.
    """
    stamp = {
        "device": device_name(),
        "versions": versions(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return {
        "table": table,
        "who": who,
        "setting": setting,
        "shape": shape,
        "group": group,
        **figures,
        **stamp,
    }


def write(path: Path | str, records: dict | list[dict]) -> None:
    """Writes one record, or several, as JSON; aside first, so that a reader never sees half of it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.{os.getpid()}")
    aside.write_text(
        json.dumps(_finite(records), ensure_ascii=False, indent=1, allow_nan=False) + "\n",
        encoding="utf-8",
    )
    os.replace(aside, path)


def read(folder: Path = RESULTS) -> list[dict]:
    """All records in a folder, in the order of their files' names."""
    found = []
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        found += content if isinstance(content, list) else [content]
    return found


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextlib.contextmanager
def saved_when_stopped(save: Callable[[str], None], seconds: float | None) -> Iterator[None]:
    """Calls `save(reason)` and ends the process when a signal comes, or the time is long over (hung, or still compiling).

    Work that looks at the clock itself ends in good order; the alarm, a minute later, is for work that cannot.
    """
    reasons = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "SIGINT", signal.SIGALRM: "time limit"}

    def stop(number: int, _frame) -> None:
        save(reasons[signal.Signals(number)])
        os._exit(0 if number == signal.SIGALRM else 128 + number)

    before = {number: signal.signal(number, stop) for number in reasons}
    if seconds:
        signal.alarm(math.ceil(seconds + 60))
    try:
        yield
    finally:
        signal.alarm(0)
        for number, handler in before.items():
            signal.signal(number, handler)
