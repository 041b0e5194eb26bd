"""What every benchmark shares: the clock, medians with quartiles, the machine, and the JSON record.

Nothing heavy is imported at the top, so that `STARTED` is close to the start of the process.
Nothing of tarazu is imported, so that a peer can be measured where tarazu is not installed.
"""

from __future__ import annotations

import time

STARTED = time.perf_counter()  # before all other imports: "seconds to the first step" count from it

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
from types import FrameType  # noqa: E402
from typing import Any  # noqa: E402

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("tarazu", "torch", "transformers", "peft", "trl", "liger-kernel", "datasets", "triton")
# Side of the square product whose rate is the device's: bfloat16 on a GPU, float32 on a CPU.
GPU_MATMUL_SIZE, CPU_MATMUL_SIZE = 8192, 1024


# --- time ---


def since_start() -> float:
    """Seconds since the process began."""
    return time.perf_counter() - STARTED


def synchronize() -> None:
    """Wait for the GPU, if there is one. Its kernels run asynchronously."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def timed(work: Callable[[], Any]) -> float:
    """Seconds that `work` takes, including its work on the GPU."""
    synchronize()
    start = time.perf_counter()
    work()
    synchronize()
    return time.perf_counter() - start


def alternate(contenders: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Time contenders in turns.

    The order is reversed every second time, so that a drift of the machine affects all alike.

    Args:
        contenders: the work to time, by name.
        repeats: times that each one runs.

    Returns:
        Seconds of each run, by name.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(repeats):
        for name in in_turn(list(contenders), turn):
            seconds[name].append(timed(contenders[name]))
    return seconds


def in_turn(contenders: list, turn: int) -> list:
    """The contenders in their order, reversed in every second turn."""
    return contenders[:: -1 if turn % 2 else 1]


def spread(values: Sequence[float]) -> dict[str, float] | None:
    """Median and quartiles as {"median", "low", "high"}; None without values."""
    import numpy as np

    if not len(values):
        return None
    low, median, high = (float(v) for v in np.percentile(values, [25, 50, 75]))
    return {"median": median, "low": low, "high": high}


# --- the machine ---


def device_name() -> str:
    """The GPU's name, or the processor's with the number of threads."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    processor = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        processor = next(
            line.split(":", 1)[1].strip()
            for line in open("/proc/cpuinfo")
            if line.startswith("model name")
        )
    return f"{processor}, {torch.get_num_threads()} threads"


def versions() -> dict[str, str]:
    """Versions of Python and of those `PACKAGES` that are installed."""
    installed = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            installed[name] = version(name)
    return installed


def peak_gib() -> float | None:
    """Peak GiB of torch's GPU allocator since the start or the last reset; None on a CPU."""
    import torch

    return torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None


def matmul_rate() -> float | None:
    """FLOP/s of a large square product, the best of eight; None if there is no memory for it.

    On a GPU in bfloat16 (the bound of the tables), on a CPU in float32. The operands are random:
    with zeros a GPU draws less power and reaches a rate that no model reaches.
    """
    import torch

    if torch.cuda.is_available():
        size, dtype, device = GPU_MATMUL_SIZE, torch.bfloat16, "cuda"
    else:
        size, dtype, device = CPU_MATMUL_SIZE, torch.float32, "cpu"
    try:
        a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        return 2 * size**3 / min(timed(lambda: a @ b) for _ in range(8))
    except RuntimeError:
        return None


def bound_share(
    tokens_per_second: float | None, parameters: int, matmul_flops: float | None
) -> float | None:
    """Fraction of the upper bound of the speed that was reached.

    Training adapters on N frozen parameters takes 4N FLOP a token: 2N in the forward pass and 2N
    for the gradients of the activations.

    Args:
        tokens_per_second: measured speed.
        parameters: N.
        matmul_flops: FLOP/s of the device, see `matmul_rate`.
    """
    if not tokens_per_second or not matmul_flops:
        return None
    return tokens_per_second * 4 * parameters / matmul_flops


# --- the record ---


def record(
    table: str, who: str, setting: str, shape: str, group: str = "", **metrics: Any
) -> dict[str, Any]:
    """One line of a table, with its machine, versions and date.

    Args:
        table: the table it belongs to (train, generation, cpu, captions).
        who: tarazu, or the peer with its version.
        setting: how it ran, in a few words.
        shape: the model, as `shapes.SHAPES` or a recipe names it.
        group: lines of one group are compared with each other, for example those of one method.
        metrics: what was measured: tokens_per_second, peak_gib, first_step_seconds, loss, ...
    """
    return {
        "table": table,
        "who": who,
        "setting": setting,
        "shape": shape,
        "group": group,
        **metrics,
        "device": device_name(),
        "versions": versions(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def write(path: Path | str, records: dict | list[dict]) -> None:
    """Write one record, or several, as JSON. A reader never sees half a file.

    Numbers that are not finite become null.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = json.dumps(_replace_nonfinite(records), ensure_ascii=False, indent=1, allow_nan=False)
    temp_path = path.with_name(f"{path.name}.{os.getpid()}")
    temp_path.write_text(content + "\n", encoding="utf-8")
    os.replace(temp_path, path)


def read(folder: Path = RESULTS) -> list[dict]:
    """All records in a folder, in the order of their files' names."""
    records: list[dict] = []
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        records += content if isinstance(content, list) else [content]
    return records


def _replace_nonfinite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _replace_nonfinite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_replace_nonfinite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextlib.contextmanager
def saved_when_stopped(save: Callable[[str], None], seconds: float | None) -> Iterator[None]:
    """Save and end the process at SIGTERM, at SIGINT, or 60 seconds after a time limit.

    Work that reads the clock itself ends before that. The alarm is for work that cannot: it hangs,
    or it still compiles.

    Args:
        save: called with the reason.
        seconds: the time limit; None: none.
    """
    reasons = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "SIGINT", signal.SIGALRM: "time limit"}

    def stop(number: int, _frame: FrameType | None) -> None:
        save(reasons[signal.Signals(number)])
        os._exit(0 if number == signal.SIGALRM else 128 + number)

    previous_handlers = {number: signal.signal(number, stop) for number in reasons}
    if seconds:
        signal.alarm(math.ceil(seconds + 60))
    try:
        yield
    finally:
        signal.alarm(0)
        for number, handler in previous_handlers.items():
            signal.signal(number, handler)
