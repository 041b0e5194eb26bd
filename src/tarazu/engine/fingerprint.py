"""Proof of what changed: a hash of every tensor before training and after it."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor

import torch

from tarazu.errors import TarazuError


def fingerprint(module: torch.nn.Module) -> dict[str, str]:
    """sha256 of the bytes, shape and dtype of every parameter and buffer, by name. A tied tensor is hashed once."""
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    with ThreadPoolExecutor(4) as pool:  # hashlib lets go of the interpreter lock
        return dict(zip(tensors, pool.map(hash_tensor, tensors.values()), strict=True))


def hash_tensor(tensor: torch.Tensor) -> str:
    """The first 32 hex digits of the sha256 of a tensor's dtype, shape and bytes."""
    digest = hashlib.sha256(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    data = tensor.detach().contiguous().cpu()
    digest.update(data.reshape(-1).view(torch.uint8).numpy() if data.numel() else b"")
    return digest.hexdigest()[:32]


def compare(
    before: dict[str, str],
    after: dict[str, str],
    trainable_names: frozenset[str],
    waiting: frozenset[str] = frozenset(),
) -> dict:
    """What `fingerprint.json` holds. `verdict` is "failed" when a frozen tensor moved or a trained one did not.

    `waiting` are trained tensors whose turn had not come at the weights that were kept.
    """
    changed = sorted(name for name in before if before[name] != after.get(name))
    wrongly = sorted(set(changed) - trainable_names | (set(before) ^ set(after)))
    still = sorted(trainable_names - waiting - set(changed))
    return {
        "algorithm": "sha256",
        "tensors": len(before),
        "trainable": len(trainable_names),
        "changed": changed,
        "unchanged": len(before) - len(changed),
        "unexpectedly_changed": wrongly,
        "unexpectedly_unchanged": still,
        "verdict": "failed" if wrongly or still else "ok",
        "digest_before": _digest(before, trainable_names),
        "digest_after": _digest(after, trainable_names),
    }


def require_ok(proof: dict, where: str) -> None:
    """Raises `TarazuError`, naming the tensors, when the proof failed."""
    if proof["verdict"] == "ok":
        return
    parts = [
        ("frozen tensors changed", proof["unexpectedly_changed"]),
        ("trained tensors did not change", proof["unexpectedly_unchanged"]),
    ]
    text = "; ".join(
        f"{what}: {', '.join(names[:5])}{' ...' if len(names) > 5 else ''}"
        for what, names in parts
        if names
    )
    todo = "do not trust this run; see fingerprint.json"
    if not proof[
        "unexpectedly_changed"
    ]:  # one step, as with a budget of a few rows, is no fault of the method
        todo = f"after a single step give a larger budget: an adapter's A moves from the second step on, as its B begins at zero; otherwise {todo}"
    raise TarazuError(f"the proof of what changed failed: {text}", location=where, hint=todo)


def _digest(hashes: dict[str, str], trainable_names: frozenset[str]) -> str:
    frozen = "".join(f"{name}={hashes[name]};" for name in sorted(hashes) if name not in trainable_names)
    return hashlib.sha256(frozen.encode()).hexdigest()
