"""Proof of what training changed: the hash of every tensor before and after.

`fingerprint` hashes, `compare` finds the tensors that changed, and `require_ok` fails a run in
which a frozen tensor changed or a trainable one did not.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from tarazu.errors import TarazuError


def fingerprint(module: torch.nn.Module) -> dict[str, str]:
    """Hash every parameter and buffer of a module, by name. A tied tensor is hashed once."""
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    with ThreadPoolExecutor(4) as pool:  # hashlib releases the interpreter lock
        return dict(zip(tensors, pool.map(hash_tensor, tensors.values()), strict=True))


def hash_tensor(tensor: torch.Tensor) -> str:
    """The first 32 hex digits of the sha256 of dtype, shape and bytes of a tensor of any shape."""
    digest = hashlib.sha256(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    data = tensor.detach().contiguous().cpu()
    digest.update(data.reshape(-1).view(torch.uint8).numpy() if data.numel() else b"")
    return digest.hexdigest()[:32]


def compare(
    before: dict[str, str],
    after: dict[str, str],
    trainable_names: frozenset[str],
    not_yet_trained: frozenset[str] = frozenset(),
) -> dict[str, Any]:
    """Compare two fingerprints of a module.

    Args:
        before: hashes by name before training.
        after: hashes by name after training.
        trainable_names: tensors that training may change.
        not_yet_trained: trainable tensors whose group had not started at the weights that were
            kept.

    Returns:
        The contents of `fingerprint.json`. `verdict` is `failed` if a frozen tensor changed or a
        trained one did not.
    """
    changed = sorted(name for name in before if before[name] != after.get(name))
    added_or_removed = set(before) ^ set(after)
    wrong = sorted(set(changed) - trainable_names | added_or_removed)
    missing = sorted(trainable_names - not_yet_trained - set(changed))
    return {
        "algorithm": "sha256",
        "tensors": len(before),
        "trainable": len(trainable_names),
        "changed": changed,
        "unchanged": len(before) - len(changed),
        "unexpectedly_changed": wrong,
        "unexpectedly_unchanged": missing,
        "verdict": "failed" if wrong or missing else "ok",
        "digest_before": _frozen_digest(before, trainable_names),
        "digest_after": _frozen_digest(after, trainable_names),
    }


def require_ok(proof: dict[str, Any], location: str) -> None:
    """Check the verdict of `compare`.

    Args:
        proof: the result of `compare`.
        location: the run's folder, for the error message.

    Raises:
        TarazuError: the proof failed; the message names the tensors.
    """
    if proof["verdict"] == "ok":
        return
    faults = []
    for fault, names in (
        ("frozen tensors changed", proof["unexpectedly_changed"]),
        ("trained tensors did not change", proof["unexpectedly_unchanged"]),
    ):
        if names:
            faults.append(f"{fault}: {', '.join(names[:5])}{' ...' if len(names) > 5 else ''}")
    hint = "do not trust this run; see fingerprint.json"
    if not proof["unexpectedly_changed"]:
        # One step is too short a training for an adapter; that is no fault of the method.
        hint = (
            "after a single step give a larger budget: B of an adapter starts at zero, so its A "
            f"changes from the second step on; otherwise {hint}"
        )
    raise TarazuError(
        f"the proof of what changed failed: {'; '.join(faults)}", location=location, hint=hint
    )


def _frozen_digest(hashes: dict[str, str], trainable_names: frozenset[str]) -> str:
    """One hash over all frozen tensors."""
    frozen_names = sorted(name for name in hashes if name not in trainable_names)
    text = "".join(f"{name}={hashes[name]};" for name in frozen_names)
    return hashlib.sha256(text.encode()).hexdigest()
