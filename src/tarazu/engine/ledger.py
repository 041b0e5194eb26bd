"""Honest accounting: seconds by phase, peak memory of training alone, tokens of every sort, energy."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import defaultdict
from collections.abc import Iterator

import psutil
import torch

from tarazu.engine.counts import TokenCounts
from tarazu.engine.cuda_graphs import memory


class Ledger:
    """Adds up one run. It is saved with every checkpoint, so a resumed run's ledger covers both halves."""

    def __init__(self, device: torch.device):
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)
        self.memory: dict[str, int | None] = {"allocated": None, "reserved": None, "resident": None}
        self.counts = TokenCounts()
        self.steps = 0
        self.energy: float | None = None
        self.code_paths: dict[str, str] = {}

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Times a block; a "train" block's peak memory and energy are kept too."""
        self._settle()
        train = name == "train"
        watch = ResourceMonitor(self.device) if train else contextlib.nullcontext()
        start = time.perf_counter()
        try:
            with watch:
                yield
                self._settle()
        finally:
            self.seconds[name] += time.perf_counter() - start
            if train:
                self._keep(watch)

    def as_json(self) -> dict:
        """The part of `ledger.json` that the engine measures."""
        names = ("rows", "tokens", "supervised", "padding", "virtual")
        train = self.seconds.get("train", 0.0)
        return {
            "seconds": dict(self.seconds),
            "train_memory": dict(self.memory),
            "tokens": dict(zip(names, self.counts.as_tuple(), strict=True)),
            "tokens_per_second": self.counts.tokens / train if train else None,
            "steps": self.steps,
            "energy_joules": self.energy,
            "code_paths": self.code_paths,
        }

    def restore(self, saved: dict) -> None:
        """Takes up a ledger that a checkpoint holds."""
        for name, seconds in saved["seconds"].items():
            self.seconds[name] += seconds
        self.memory = dict(saved["train_memory"])
        self.counts = TokenCounts(*saved["tokens"].values())
        self.steps, self.energy = saved["steps"], saved["energy_joules"]

    def _settle(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _keep(self, watch: ResourceMonitor) -> None:
        for name, value in watch.peaks().items():
            self.memory[name] = (
                value if self.memory[name] is None else max(value, self.memory[name])
            )
        if watch.energy is not None:
            self.energy = (self.energy or 0.0) + watch.energy


class ResourceMonitor:
    """Peak memory and energy between enter and exit: the allocator's own peaks on CUDA, sampled residency on CPU."""

    interval = 0.02  # seconds between looks at the resident size

    def __init__(self, device: torch.device):
        self.device, self.resident, self.energy = device, 0, None
        self._stop = threading.Event()

    def __enter__(self) -> ResourceMonitor:
        if self.device.type == "cuda":
            memory.reset(self.device)
            self._start = _energy(self.device)
        else:
            self._thread = threading.Thread(target=self._look, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        if self.device.type == "cuda":
            end = _energy(self.device)
            self.energy = end - self._start if end is not None and self._start is not None else None
        else:
            self._stop.set()
            self._thread.join()

    def peaks(self) -> dict[str, int]:
        if self.device.type == "cuda":
            return {
                "allocated": memory.peak(self.device),
                "reserved": torch.cuda.max_memory_reserved(self.device),
            }
        return {"resident": self.resident}

    def _look(self) -> None:
        process = psutil.Process(os.getpid())
        while True:
            self.resident = max(self.resident, process.memory_info().rss)
            if self._stop.wait(self.interval):
                return


def _energy(device: torch.device) -> float | None:
    """Joules since the driver loaded, where the GPU counts them."""
    try:
        import pynvml

        pynvml.nvmlInit()
        name = "GPU-" + str(torch.cuda.get_device_properties(device).uuid).removeprefix(
            "GPU-"
        )  # the index would be another GPU's under CUDA_VISIBLE_DEVICES
        handle = pynvml.nvmlDeviceGetHandleByUUID(name)
        return pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000
    except (
        Exception
    ):  # no driver, no counter, no package: energy is then unknown, which is not an error
        return None
