"""What a run costs: seconds by phase, peak memory of training, tokens of every kind, energy."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import psutil
import torch

from tarazu.engine.counts import TokenCounts
from tarazu.engine.cuda_graphs import memory


class Ledger:
    """Sums of one run. Every checkpoint holds them, so a resumed run's ledger covers all its parts.

    Args:
        device: where the run computes.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)  # by phase
        self.memory: dict[str, int | None] = {"allocated": None, "reserved": None, "resident": None}
        self.counts = TokenCounts()
        self.steps = 0
        self.energy: float | None = None  # joules
        self.code_paths: dict[str, str] = {}

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a block. Of the phase `train`, peak memory and energy are recorded too."""
        is_training = name == "train"
        monitor = ResourceMonitor(self.device) if is_training else contextlib.nullcontext()
        self._synchronize()
        start = time.perf_counter()
        try:
            with monitor:
                yield
                self._synchronize()
        finally:
            self.seconds[name] += time.perf_counter() - start
            if is_training:
                self._add(monitor)

    def as_json(self) -> dict[str, Any]:
        """The part of `ledger.json` that the engine measures."""
        train_seconds = self.seconds.get("train", 0.0)
        return {
            "seconds": dict(self.seconds),
            "train_memory": dict(self.memory),
            "tokens": asdict(self.counts),
            "tokens_per_second": self.counts.tokens / train_seconds if train_seconds else None,
            "steps": self.steps,
            "energy_joules": self.energy,
            "code_paths": self.code_paths,
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """Continue a ledger that a checkpoint holds, in the format of `as_json`."""
        for name, seconds in saved["seconds"].items():
            self.seconds[name] += seconds
        self.memory = dict(saved["train_memory"])
        self.counts = TokenCounts(*saved["tokens"].values())
        self.steps, self.energy = saved["steps"], saved["energy_joules"]

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _add(self, monitor: ResourceMonitor) -> None:
        for name, peak in monitor.peaks().items():
            self.memory[name] = max(peak, self.memory[name] or 0)
        if monitor.energy is not None:
            self.energy = (self.energy or 0.0) + monitor.energy


class ResourceMonitor:
    """Peak memory and energy of a block. Use as a context manager.

    On a GPU the allocator counts the peak. On a CPU a thread samples the resident size.
    """

    interval = 0.02  # seconds between two samples of the resident size

    def __init__(self, device: torch.device):
        self.device = device
        self.resident = 0  # bytes
        self.energy: float | None = None  # joules, where the GPU counts them
        self._stop = threading.Event()

    def __enter__(self) -> ResourceMonitor:
        if self.device.type == "cuda":
            memory.reset_peak(self.device)
            self._energy_at_start = _gpu_energy(self.device)
        else:
            self._thread = threading.Thread(target=self._sample_resident, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cuda":
            energy_at_end = _gpu_energy(self.device)
            if energy_at_end is not None and self._energy_at_start is not None:
                self.energy = energy_at_end - self._energy_at_start
        else:
            self._stop.set()
            self._thread.join()

    def peaks(self) -> dict[str, int]:
        """Bytes by kind: `allocated` and `reserved` on a GPU, `resident` on a CPU."""
        if self.device.type == "cuda":
            return {
                "allocated": memory.peak_bytes(self.device),
                "reserved": torch.cuda.max_memory_reserved(self.device),
            }
        return {"resident": self.resident}

    def _sample_resident(self) -> None:
        process = psutil.Process(os.getpid())
        while True:
            self.resident = max(self.resident, process.memory_info().rss)
            if self._stop.wait(self.interval):
                return


def _gpu_energy(device: torch.device) -> float | None:
    """Joules since the driver was loaded, or None where the GPU does not count them."""
    try:
        import pynvml

        pynvml.nvmlInit()
        # By UUID: under CUDA_VISIBLE_DEVICES the index would name another GPU.
        uuid = str(torch.cuda.get_device_properties(device).uuid).removeprefix("GPU-")
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        return pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000
    except Exception:
        # No driver, no counter or no package: the energy is unknown, which is not an error.
        return None
