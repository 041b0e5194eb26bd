"""What a recipe will need, told from its model's shape and a table of devices, without loading or running anything.

The answer is a range, and a wide one: how much of its peak a device reaches differs between models and programs. Measured
steps (`estimate.py`) replace it where they can be had; before them it says what cannot work at all.
"""

from __future__ import annotations

from dataclasses import dataclass

import psutil
import torch

from tarazu.engine.cost import CostOutline
from tarazu.engine.flops import device_rate
from tarazu.engine.precision import uses_bfloat16
from tarazu.errors import TarazuError, UserError
from tarazu.recipe.schema import Recipe

# Dense bfloat16 (T4, V100: float16) FLOP/s, bytes of memory, and bytes per second of it: the makers' data sheets.
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
UTILISATION_RANGE = {
    "cuda": (0.08, 0.40),
    "cpu": (0.15, 0.90),
}  # share of that (on a CPU: of a measured large product) that training reaches
BANDWIDTH_RANGE = (
    0.05,
    0.60,
)  # share of the memory's speed that writing one token at a time reaches
MODEL_ERRORS = (
    TarazuError,
    RuntimeError,
    ValueError,
    TypeError,
    AttributeError,
)  # whatever a model's code raises
NOT_PREDICTED = "nothing is predicted for this task without measuring"
ACTIVATION_RANGE = (0.6, 2.0)  # activations, around what the shape tells


@dataclass(frozen=True)
class DeviceSpec:
    """FLOP/s (peak, or of a measured product), free memory in bytes, its speed in bytes per second if known."""

    kind: str
    flops: float
    memory: int
    bandwidth: float | None


def predict(
    task, recipe: Recipe, name: str, data, device: torch.device, on: str | None = None
) -> dict:
    """The entry of one method: whether it works, why not, and ranges of time and memory where the task can tell them."""
    entry = {
        "works": True,
        "reasons": [],
        "notes": [],
        "how": "predicted",
        "seconds": None,
        "tokens_per_second": None,
        "memory": None,
        "disk": None,
    }
    entry |= {"range": None, "flops_per_token": None}
    try:
        outline = task.cost.outline(recipe, name, data, device_kind(device, on))
    except MODEL_ERRORS as error:
        reason = (
            error.message
            if isinstance(error, TarazuError)
            else f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
        )
        return {**entry, "works": False, "reasons": [reason]}
    if outline is None:
        return {**entry, "notes": [NOT_PREDICTED]}
    machine = resolve_device(recipe, device, on)
    found = ranges(outline, machine)
    entry |= {
        "range": found,
        "flops_per_token": outline.flops_per_token,
        "notes": list(outline.notes),
    }
    if found["memory"][0] > machine.memory:
        entry |= {
            "works": False,
            "reasons": [
                f"needs at least {found['memory'][0] / 2**30:.1f} GiB of memory; {machine.memory / 2**30:.1f} GiB are there"
            ],
        }
    return entry


def ranges(outline: CostOutline, machine: DeviceSpec) -> dict[str, list[float]]:
    """[least, most] seconds of one run, bytes of memory and of disk."""
    low, high = UTILISATION_RANGE[machine.kind]
    products = outline.train_flops + outline.evaluate_flops
    seconds = []
    for reached, streamed in ((high, BANDWIDTH_RANGE[1]), (low, BANDWIDTH_RANGE[0])):
        step = outline.decode_flops / machine.flops / reached
        if machine.bandwidth:
            step = max(step, outline.decode_bytes / machine.bandwidth / streamed)
        seconds.append(products / machine.flops / reached + outline.decode_steps * step)
    memory = [
        outline.fixed_bytes + outline.activation_bytes * factor for factor in ACTIVATION_RANGE
    ]
    return {"seconds": seconds, "memory": memory, "disk": [outline.disk_bytes, outline.disk_bytes]}


def resolve_device(recipe: Recipe, device: torch.device, on: str | None) -> DeviceSpec:
    """The device to foresee for: one of the table, by name, or this machine's (looked up, or its product measured)."""
    if on:
        name = next(
            (
                known
                for known in DEVICES
                if known.replace(" ", "").lower() == on.replace(" ", "").lower()
            ),
            None,
        )
        if name is None:
            raise UserError(
                f"no device {on!r} in the table",
                location="--on",
                hint=f"one of: {', '.join(DEVICES)}",
            )
        return DeviceSpec("cuda", DEVICES[name][0], int(DEVICES[name][1]), DEVICES[name][2])
    if device.type == "cuda":
        title = torch.cuda.get_device_name(device)
        name = next((known for known in DEVICES if known in title), None)
        if name:
            return DeviceSpec("cuda", DEVICES[name][0], available_memory(device), DEVICES[name][2])
    dtype = torch.bfloat16 if uses_bfloat16(recipe.budget, device) else torch.float32
    return DeviceSpec(
        device.type, device_rate(device, dtype) or 1e11, available_memory(device), None
    )


def device_kind(device: torch.device, on: str | None) -> torch.device:
    """The sort of device that the model will run on."""
    return torch.device("cuda") if on else device


def available_memory(device: torch.device) -> int:
    """Bytes that a model may still take."""
    return (
        torch.cuda.mem_get_info(device)[0]
        if device.type == "cuda"
        else psutil.virtual_memory().available
    )
