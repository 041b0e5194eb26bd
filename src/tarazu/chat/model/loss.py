"""Cross-entropy over the answer's tokens, for a part of the logits at a time.

Which tokens are supervised (the loss mask) is decided in `chat/data/chat_template.py`.

With a vocabulary of 262,144 the logits of one batch would be larger than the model. Here the
logits of a chunk of tokens become losses and gradients at once and are dropped. So the head's
product runs twice for a token (forward and backward), not three times as with recomputation.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from transformers import PretrainedConfig, PreTrainedModel

SMALL_CHUNK = 256 * 2**20  # bytes of logits at a time
LARGE_CHUNK = 1024 * 2**20  # the default on a GPU, where larger products run faster
CACHE_BYTES = 4 * 2**20  # bytes of logits that stay in a processor's cache


def token_losses(
    model: PreTrainedModel, hidden: torch.Tensor, labels: torch.Tensor, chunk: int | None = None
) -> torch.Tensor:
    """Cross-entropy of each label under the model's head, in nats.

    Differentiable through the sum of the losses only: see `ChunkedCrossEntropy`.

    Args:
        model: the causal LM.
        hidden: (N, width) the hidden states that predict the labels.
        labels: (N,) token ids.
        chunk: bytes of logits at a time; None: by device.

    Returns:
        (N,) float32.
    """
    head, config = model.get_output_embeddings(), model.config
    if head.bias is not None or _has_scaled_logits(config):
        return F.cross_entropy(logits_of(model, hidden), labels, reduction="none")
    softcap = getattr(config, "final_logit_softcapping", None)
    if torch.is_autocast_enabled(hidden.device.type):
        hidden = hidden.to(torch.get_autocast_dtype(hidden.device.type))
    chunk = chunk or (LARGE_CHUNK if hidden.is_cuda else SMALL_CHUNK)
    return ChunkedCrossEntropy.apply(hidden, head.weight, labels, softcap, chunk)


def logits_of(model: PreTrainedModel, hidden: torch.Tensor) -> torch.Tensor:
    """(N, V) float32 logits, as the model itself computes them from (N, width) hidden states."""
    logits = model.get_output_embeddings()(hidden).float()
    config = model.config
    if getattr(config, "logit_scale", None):  # Cohere
        logits = logits * config.logit_scale
    if getattr(config, "logits_scaling", None):  # Granite
        logits = logits / config.logits_scaling
    softcap = getattr(config, "final_logit_softcapping", None)
    return torch.tanh(logits / softcap) * softcap if softcap else logits


def _has_scaled_logits(config: PretrainedConfig) -> bool:
    return bool(getattr(config, "logit_scale", None) or getattr(config, "logits_scaling", None))


class ChunkedCrossEntropy(torch.autograd.Function):
    """Losses (N,) of `labels` (N,) under softmax(cap(hidden (N, width) @ weight.T (V, width))).

    The gradient is that of the *sum* of the losses: scale the sum, but do not weight single tokens.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        labels: torch.Tensor,
        softcap: float | None,
        chunk: int,
    ) -> torch.Tensor:
        """(N,) losses; the gradients of their sum are saved, and backward only scales them."""
        need_hidden, need_weight = ctx.needs_input_grad[:2]
        need_grad = need_hidden or need_weight
        grad_hidden = torch.empty_like(hidden) if need_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if need_weight else None
        losses = torch.empty(len(labels), dtype=torch.float32, device=hidden.device)
        matrix = weight.to(hidden.dtype)
        rows = max(1, chunk // (hidden.element_size() * weight.shape[0]))
        for start in range(0, len(labels), rows):
            part = slice(start, start + rows)
            logits = hidden[part] @ matrix.T
            cross_entropy = _pick_cross_entropy(logits, softcap, need_grad)
            losses[part], grad = cross_entropy(logits, labels[part], softcap, need_grad)
            if need_hidden:
                torch.mm(grad, matrix, out=grad_hidden[part])
            if need_weight:
                grad_weight += grad.T.float() @ hidden[part].float()
            del logits, grad  # free them before the next chunk allocates
        ctx.save_for_backward(grad_hidden, grad_weight)
        return losses

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """The saved gradients, (N, width) and (V, width), times the gradient of the sum."""
        grad_hidden, grad_weight = ctx.saved_tensors
        # All entries are equal, as the losses are summed.
        scale = grad.flatten()[0] if grad.numel() else grad.sum()
        return (
            None if grad_hidden is None else grad_hidden * scale.to(grad_hidden.dtype),
            None if grad_weight is None else grad_weight * scale,
            None,
            None,
            None,
        )


def cross_entropy_with_grad(
    logits: torch.Tensor, labels: torch.Tensor, softcap: float | None, need_grad: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Losses and the gradient of their sum, in plain PyTorch.

    Args:
        logits: (N, V), before the cap.
        labels: (N,) token ids.
        softcap: logits are capped as softcap * tanh(logit / softcap); None or 0: uncapped.
        need_grad: whether the gradient is wanted.

    Returns:
        (N,) float32 losses, and the (N, V) gradient for `logits` in their type, or None.
    """
    raw = logits.float()
    # tanh(x) = 2 sigmoid(2 x) - 1, in fewer instructions.
    capped = (2 * torch.sigmoid(raw * (2 / softcap)) - 1) * softcap if softcap else raw
    log_sums = torch.logsumexp(capped, -1)
    label_logits = capped.gather(1, labels[:, None])[:, 0]
    if not need_grad:
        return log_sums - label_logits, None
    is_label = torch.arange(logits.shape[1], device=logits.device) == labels[:, None]
    grad = torch.exp(capped - log_sums[:, None]) - is_label.to(torch.float32)
    if softcap:
        grad = grad * (1 - (capped / softcap) ** 2)
    return log_sums - label_logits, grad.to(logits.dtype)


def cross_entropy_in_place(
    logits: torch.Tensor, labels: torch.Tensor, softcap: float | None, need_grad: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`cross_entropy_with_grad` for a CPU: in the logits' own memory, a few rows at a time.

    So many rows that they stay in the processor's cache; else each operation would wait for
    memory. Arguments and results have the shapes of `cross_entropy_with_grad`.
    """
    losses = torch.empty(len(labels), dtype=torch.float32, device=logits.device)
    rows = max(1, CACHE_BYTES // (4 * logits.shape[1]))
    parts = zip(losses.split(rows), logits.split(rows), labels.split(rows), strict=True)
    for part_losses, part_logits, part_labels in parts:
        x, label = part_logits.float(), part_labels[:, None]  # x is a copy, except of float32
        tanh = x.div_(softcap).tanh_().clone() if softcap else None
        x = x.mul_(softcap) if softcap else x
        x.sub_(x.amax(1, keepdim=True))
        label_logits = x.gather(1, label)
        sums = x.exp_().sum(1, keepdim=True)
        part_losses.copy_((sums.log() - label_logits)[:, 0])
        if need_grad:
            # softmax - one_hot(label), times the derivative of the cap: 1 - tanh^2.
            x.div_(sums).scatter_add_(1, label, torch.full_like(label_logits, -1.0))
            part_logits.copy_(x if tanh is None else x.mul_(tanh.square_().neg_().add_(1)))
    return losses, logits if need_grad else None


def _pick_cross_entropy(logits: torch.Tensor, softcap: float | None, need_grad: bool) -> Callable:
    """The implementation that reads these logits least often.

    In place on a CPU; on a GPU our Triton kernel, or `cross_entropy_with_grad` compiled where the
    kernel does not apply, or as it is where nothing is compiled (no gradient, or no Triton:
    Windows).
    """
    if not logits.is_cuda:
        return cross_entropy_in_place
    if not need_grad or not _has_triton():
        return cross_entropy_with_grad
    kernel = _kernel_module()
    if kernel and kernel.is_supported(logits, softcap):
        return kernel.cross_entropy_with_grad
    return _compiled()


@lru_cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


@lru_cache
def _kernel_module() -> ModuleType | None:
    """The kernel's module, on NVIDIA GPUs only: it was not tried on others."""
    if torch.version.cuda is None:
        return None
    from tarazu.chat.fast import cross_entropy_triton

    return cross_entropy_triton


@lru_cache
def _compiled() -> Callable:
    return torch.compile(cross_entropy_with_grad, dynamic=True)
