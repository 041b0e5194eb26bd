"""Prediction of cost from the model's shape and a table of devices. Nothing is loaded or run.

The result is a wide range, because the fraction of its peak speed that a device reaches differs
between models and programs. The measured steps of `dry_run.py` replace it where they are possible.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psutil
import torch

from tarazu.engine.cost import CostOutline
from tarazu.engine.flops import device_rate
from tarazu.engine.precision import uses_bfloat16
from tarazu.engine.task import Task
from tarazu.errors import TarazuError, UserError
from tarazu.recipe.schema import Recipe

# By name: FLOP/s in dense bfloat16 (T4 and V100: float16), memory in bytes, and memory bandwidth in
# bytes per second, from the manufacturers' data sheets.
DEVICES = {
    "B200": (2250e12, 192e9, 8.0e12),
    "H200": (989e12, 141e9, 4.8e12),
    "H100": (989e12, 80e9, 3.35e12),
    "A100": (312e12, 80e9, 2.0e12),
    "L40S": (362e12, 48e9, 0.86e12),
    "A10": (125e12, 24e9, 0.6e12),
    "L4": (121e12, 24e9, 0.3e12),
    "T4": (65e12, 16e9, 0.32e12),
    "V100": (125e12, 32e9, 0.9e12),
    "RTX 4090": (165e12, 24e9, 1.0e12),
    "RTX 3090": (71e12, 24e9, 0.94e12),
}
# The range of the fraction of peak FLOP/s that training reaches; on a CPU, of a measured matmul.
UTILISATION_RANGE = {"cuda": (0.08, 0.40), "cpu": (0.15, 0.90)}
# The range of the fraction of the memory bandwidth that generating token by token reaches.
BANDWIDTH_RANGE = (0.05, 0.60)
# The range of the memory of activations, relative to the model's outline.
ACTIVATION_RANGE = (0.6, 2.0)
# What a model's code may raise when a method does not work with it.
MODEL_ERRORS = (TarazuError, RuntimeError, ValueError, TypeError, AttributeError)
NOT_PREDICTED = "nothing is predicted for this task without measuring"


@dataclass(frozen=True)
class DeviceSpec:
    """Speed and memory of a device.

    Args:
        kind: `cuda` or `cpu`.
        flops: FLOP/s, from the table or of a measured matmul.
        memory: free memory in bytes.
        bandwidth: memory bandwidth in bytes per second, if known.
    """

    kind: str
    flops: float
    memory: int
    bandwidth: float | None


def predict(
    task: Task, recipe: Recipe, name: str, data: Any, device: torch.device, on: str | None = None
) -> dict[str, Any]:
    """Predict one method's cost.

    Args:
        task: the recipe's task.
        recipe: the recipe.
        name: the method.
        data: the prepared data.
        device: the device of this machine.
        on: a device of `DEVICES` to predict for, instead of this machine's.

    Returns:
        The method's entry of estimate.json: whether it works, why not, and ranges of time, memory
        and disk if the task can tell.

    Raises:
        UserError: there is no device `on`.
    """
    entry: dict[str, Any] = {
        "works": True,
        "reasons": [],
        "notes": [],
        "how": "predicted",
        **dict.fromkeys(("seconds", "tokens_per_second", "memory", "disk")),
        **dict.fromkeys(("range", "flops_per_token")),
    }
    try:
        outline = task.cost.outline(recipe, name, data, torch.device("cuda") if on else device)
    except MODEL_ERRORS as error:
        reason = first_line(error)
        if not isinstance(error, TarazuError):
            reason = f"{type(error).__name__}: {reason}"
        return {**entry, "works": False, "reasons": [reason]}
    if outline is None:
        return {**entry, "notes": [NOT_PREDICTED]}
    spec = resolve_device(recipe, device, on)
    ranges = cost_ranges(outline, spec)
    entry["range"] = ranges
    entry["flops_per_token"] = outline.flops_per_token
    entry["notes"] = list(outline.notes)
    min_memory = ranges["memory"][0]
    if min_memory > spec.memory:
        need, free = min_memory / 2**30, spec.memory / 2**30
        entry["works"] = False
        entry["reasons"] = [f"needs at least {need:.1f} GiB of memory; {free:.1f} GiB are free"]
    return entry


def first_line(error: Exception) -> str:
    """The first line of an error's message; its type where it has none."""
    message = error.message if isinstance(error, TarazuError) else str(error)
    return (message.strip().splitlines() or [type(error).__name__])[0]


def cost_ranges(outline: CostOutline, spec: DeviceSpec) -> dict[str, list[float]]:
    """[min, max] of one run: seconds, bytes of memory, and bytes on disk."""
    low, high = UTILISATION_RANGE[spec.kind]
    slow, fast = BANDWIDTH_RANGE
    flops = outline.train_flops + outline.evaluate_flops
    seconds = []
    for utilisation, bandwidth_fraction in ((high, fast), (low, slow)):
        # A generation step is bound by arithmetic or by reading the weights and the KV cache.
        step_seconds = outline.decode_flops / spec.flops / utilisation
        if spec.bandwidth:
            reading = outline.decode_bytes / spec.bandwidth / bandwidth_fraction
            step_seconds = max(step_seconds, reading)
        seconds.append(flops / spec.flops / utilisation + outline.decode_steps * step_seconds)
    memory = [
        outline.fixed_bytes + outline.activation_bytes * factor for factor in ACTIVATION_RANGE
    ]
    return {"seconds": seconds, "memory": memory, "disk": [outline.disk_bytes, outline.disk_bytes]}


def resolve_device(recipe: Recipe, device: torch.device, on: str | None) -> DeviceSpec:
    """The device to predict for: `on` from the table, or else this machine's.

    A GPU that is not in the table, and a CPU, are measured with a large matmul.

    Raises:
        UserError: there is no device `on` in the table.
    """
    if on:
        by_key = {name.replace(" ", "").lower(): name for name in DEVICES}
        name = by_key.get(on.replace(" ", "").lower())
        if name is None:
            hint = f"one of: {', '.join(DEVICES)}"
            raise UserError(f"no device {on!r} in the table", location="--on", hint=hint)
        flops, memory, bandwidth = DEVICES[name]
        return DeviceSpec("cuda", flops, int(memory), bandwidth)
    if device.type == "cuda":
        title = torch.cuda.get_device_name(device)
        name = next((name for name in DEVICES if name in title), None)
        if name:
            flops, _, bandwidth = DEVICES[name]
            return DeviceSpec("cuda", flops, available_memory(device), bandwidth)
    dtype = torch.bfloat16 if uses_bfloat16(recipe.budget, device) else torch.float32
    flops = device_rate(device, dtype) or 1e11
    return DeviceSpec(device.type, flops, available_memory(device), None)


def available_memory(device: torch.device) -> int:
    """Free memory of a device, in bytes."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return int(psutil.virtual_memory().available)
