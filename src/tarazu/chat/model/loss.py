"""Cross-entropy over answer tokens only, a chunk of the vocabulary's logits at a time.

With 262,144 words, the logits of one batch would be larger than the model. Here a chunk's logits become its loss and its
gradient at once and are forgotten; the head runs twice per token instead of the three times that recomputing would take.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec
from types import ModuleType

import torch
import torch.nn.functional as F

SMALL_CHUNK = 256 * 2**20  # bytes of logits
LARGE_CHUNK = 1024 * 2**20  # larger products run faster on a GPU
CACHED = 4 * 2**20  # bytes of logits that stay in a processor's cache


class ChunkedCrossEntropy(torch.autograd.Function):
    """Losses (N,) of `labels` (N,) under softmax(cap(hidden (N, width) @ weight.T (V, width))).

    The gradient is that of the *sum* of the losses: scale it, but do not weigh single tokens.
    """

    @staticmethod
    def forward(ctx, hidden, weight, labels, softcap, chunk):
        need_hidden, need_weight = ctx.needs_input_grad[:2]
        sloped = need_hidden or need_weight
        grad_hidden = torch.empty_like(hidden) if need_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if need_weight else None
        losses = torch.empty(len(labels), dtype=torch.float32, device=hidden.device)
        matrix = weight.to(hidden.dtype)
        rows = max(1, chunk // (hidden.element_size() * weight.shape[0]))
        for start in range(0, len(labels), rows):
            part = slice(start, start + rows)
            logits = hidden[part] @ matrix.T
            losses[part], grad = _fast(logits, softcap, sloped)(
                logits, labels[part], softcap, sloped
            )
            if need_hidden:
                torch.mm(grad, matrix, out=grad_hidden[part])
            if need_weight:
                grad_weight += grad.T.float() @ hidden[part].float()
            del logits, grad  # before the next chunk is made
        ctx.save_for_backward(grad_hidden, grad_weight)
        return losses

    @staticmethod
    def backward(ctx, grad):
        hidden, weight = ctx.saved_tensors
        scale = grad.flatten()[0] if grad.numel() else grad.sum()
        return (
            (None if hidden is None else hidden * scale.to(hidden.dtype)),
            (None if weight is None else weight * scale),
            None,
            None,
            None,
        )


def cross_entropy_with_grad(
    logits: torch.Tensor, labels: torch.Tensor, softcap: float | None, sloped: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Losses (N,), float32, of raw logits (N, V), and the gradient of their sum in the logits' type if it is wanted."""
    raw = logits.float()
    capped = (
        (2 * torch.sigmoid(raw * (2 / softcap)) - 1) * softcap if softcap else raw
    )  # tanh, in fewer instructions
    total = torch.logsumexp(capped, -1)
    picked = capped.gather(1, labels[:, None])[:, 0]
    if not sloped:
        return total - picked, None
    chosen = torch.arange(logits.shape[1], device=logits.device) == labels[:, None]
    grad = torch.exp(capped - total[:, None]) - chosen.to(torch.float32)
    if softcap:
        grad = grad * (1 - (capped / softcap) ** 2)
    return total - picked, grad.to(logits.dtype)


def cross_entropy_in_place(
    logits: torch.Tensor, labels: torch.Tensor, softcap: float | None, sloped: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """As `cross_entropy_with_grad`, in the logits' own memory, a few rows at a time that a processor's cache holds: it would wait for memory otherwise."""
    losses = torch.empty(len(labels), dtype=torch.float32, device=logits.device)
    rows = max(1, CACHED // (4 * logits.shape[1]))
    for mine, part, chosen in zip(
        losses.split(rows), logits.split(rows), labels.split(rows), strict=True
    ):
        x, label = part.float(), chosen[:, None]
        share = x.div_(softcap).tanh_().clone() if softcap else None
        x = x.mul_(softcap) if softcap else x
        x.sub_(x.amax(1, keepdim=True))
        picked = x.gather(1, label)
        total = x.exp_().sum(1, keepdim=True)
        mine.copy_((total.log() - picked)[:, 0])
        if sloped:
            x.div_(total).scatter_add_(1, label, torch.full_like(picked, -1.0))
            part.copy_(x if share is None else x.mul_(share.square_().neg_().add_(1)))
    return losses, logits if sloped else None


def _fast(logits: torch.Tensor, softcap: float | None, sloped: bool) -> Callable:
    """`cross_entropy_with_grad` for these logits in few readings: row by row on a CPU, by our kernel, or compiled; as it is without Triton (Windows)."""
    if not logits.is_cuda:
        return cross_entropy_in_place
    if not sloped or not _has_triton():
        return cross_entropy_with_grad
    kernel = _kernel()
    return (
        kernel.cross_entropy_with_grad
        if kernel and kernel.is_supported(logits, softcap)
        else _compiled()
    )


@lru_cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


@lru_cache
def _kernel() -> ModuleType | None:
    """The kernel's file, where it was tried: on an NVIDIA GPU."""
    if torch.version.cuda is None:
        return None
    from tarazu.chat.fast import cross_entropy_triton

    return cross_entropy_triton


@lru_cache
def _compiled() -> Callable:
    return torch.compile(cross_entropy_with_grad, dynamic=True)


def token_losses(
    model, hidden: torch.Tensor, labels: torch.Tensor, chunk: int | None = None
) -> torch.Tensor:
    """Nats of each label, (N,), from the hidden states (N, width) that predict them; differentiable through their sum.

    `chunk`: bytes of logits at a time; default by device.
    """
    head, softcap = (
        model.get_output_embeddings(),
        getattr(model.config, "final_logit_softcapping", None),
    )
    if head.bias is not None or _unusual(model.config):
        return F.cross_entropy(logits_of(model, hidden), labels, reduction="none")
    if torch.is_autocast_enabled(hidden.device.type):
        hidden = hidden.to(torch.get_autocast_dtype(hidden.device.type))
    return ChunkedCrossEntropy.apply(
        hidden,
        head.weight,
        labels,
        softcap,
        chunk or (LARGE_CHUNK if hidden.is_cuda else SMALL_CHUNK),
    )


def logits_of(model, hidden: torch.Tensor) -> torch.Tensor:
    """(N, V) float32 logits as the model itself makes them from hidden states."""
    logits = model.get_output_embeddings()(hidden).float()
    config = model.config
    if getattr(config, "logit_scale", None):  # Cohere
        logits = logits * config.logit_scale
    if getattr(config, "logits_scaling", None):  # Granite
        logits = logits / config.logits_scaling
    softcap = getattr(config, "final_logit_softcapping", None)
    return torch.tanh(logits / softcap) * softcap if softcap else logits


def _unusual(config) -> bool:
    return bool(getattr(config, "logit_scale", None) or getattr(config, "logits_scaling", None))
