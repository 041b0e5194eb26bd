"""Low-rank adapters with less work than peft's, on peft's own modules and parameters.

peft casts each input to float32, LoHa multiplies by a full-size update, and DoRA builds one for
its norm. Here inputs keep their type. LoHa's update stays in factors, because (B1 A1) * (B2 A2) =
B A, where A and B are row- and column-wise Khatri-Rao products of rank r^2. DoRA's norm comes from
the factors, too. Tests compare with peft's own forward pass.

Each adapter is replaced by a module of a subclass of peft's class that holds the same parameters.
So names, `state_dict`, merging and saving are peft's.
"""

from __future__ import annotations

from typing import Any

import peft.tuners.loha.layer as loha
import peft.tuners.lora.layer as lora
import torch
import torch.nn.functional as F
from torch import nn


def use_lightweight_forward(model: nn.Module) -> None:
    """Replace every low-rank adapter in `model` whose meaning this file covers.

    Args:
        model: a model with peft's adapters; it is changed in place.
    """
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            kind = _lightweight_class(layer)
            if kind is not None:
                # Without `__init__`, which would draw new weights.
                replacement = kind.__new__(kind)
                replacement.__dict__.update(layer.__dict__)
                setattr(parent, name, replacement)


def has_lightweight_adapters(model: nn.Module) -> bool:
    """Whether some adapter of `model` was replaced."""
    return any(isinstance(module, LIGHTWEIGHT_ADAPTERS) for module in model.modules())


def _lightweight_class(layer: nn.Module) -> type[nn.Module] | None:
    """The class of this file that computes the same as peft's layer, if there is one."""
    if type(layer) is loha.Linear:
        dropped = any(layer.module_dropout.values()) or any(layer.rank_dropout.values())
        return None if dropped else LightweightLoHa
    if type(layer) is not lora.Linear:
        return None
    adapter = layer.active_adapters[0]
    if layer.fan_in_fan_out or layer.lora_bias[adapter]:
        return None
    if not layer.lora_variant:
        return LightweightLoRA
    is_dora = type(layer.lora_variant[adapter]).__name__ == "DoraLinearVariant"
    has_dropout = isinstance(layer.lora_dropout[adapter], nn.Dropout)
    return LightweightDoRA if is_dora and not has_dropout else None


def low_rank(
    x: torch.Tensor, lora_a: torch.Tensor, lora_b: torch.Tensor, scale: float
) -> torch.Tensor:
    """The adapter's product, scale * (x A^T) B^T, in x's type.

    Args:
        x: (..., in).
        lora_a: (r, in).
        lora_b: (out, r).
        scale: factor of the update.

    Returns:
        (..., out).
    """
    return F.linear(F.linear(x, lora_a.to(x.dtype)), (lora_b * scale).to(x.dtype))


class _LowRankAdapter:
    """y = W x + s B A x: the forward pass of adapters whose update is a product of two factors."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in) -> (..., out)."""
        base = self.base_layer(x)
        if self.disable_adapters or self.merged:
            return base
        name = self._active_adapter[0]
        x = self.apply_dropout(name, x)
        return base + low_rank(x, *self.factors(name), self.scaling[name])

    def apply_dropout(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """The adapter's input, (..., in); some adapters have dropout of their own for it."""
        return x


class LightweightLoHa(_LowRankAdapter, loha.Linear):
    """LoHa (Hyeon-Woo et al. 2022, arXiv:2108.06098): the update is (B1 A1) * (B2 A2), of rank
    r^2."""

    def factors(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """A (r^2, in) and B (out, r^2)."""
        lora_b = khatri_rao(self.hada_w1_a[name].T, self.hada_w2_a[name].T).T
        return khatri_rao(self.hada_w1_b[name], self.hada_w2_b[name]), lora_b


class LightweightLoRA(_LowRankAdapter, lora.Linear):
    """LoRA (Hu et al. 2022, arXiv:2106.09685): the update is B A.

    Attributes:
        group: the `FusedGroup` whose matrix holds this layer's weights, if `fused_lora.py` made
            one.
        group_index: which of the group's layers this is.
    """

    group: Any = None
    group_index: int = 0

    def falls_back(self, x: torch.Tensor) -> bool:
        """Whether this layer computes its output alone. Fused products are for compiled
        training."""
        if self.group is None or self.disable_adapters or self.merged:
            return True
        if x.dtype != self.group.matrix.dtype:
            return True
        return not torch.is_grad_enabled() or not torch.compiler.is_compiling()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in) -> (..., out), from the group's product or by this layer alone."""
        if self.falls_back(x):
            return self.unfused(x)
        out = self.group.output(self.group_index, x)
        return out if self.base_layer.bias is None else out + self.base_layer.bias

    def unfused(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in) -> (..., out), by this layer alone."""
        return super().forward(x)

    def apply_dropout(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """The adapter's input, (..., in), after peft's dropout for it."""
        return self.lora_dropout[name](x)

    def factors(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """A (r, in) and B (out, r)."""
        return self.lora_A[name].weight, self.lora_B[name].weight


class LightweightDoRA(LightweightLoRA):
    """DoRA (Liu et al. 2024, arXiv:2402.09353): y = m (W + s B A) x / ||W + s B A||.

    The norm is of each row. It counts as a constant in the backward pass (section 4.3).
    """

    def unfused(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in) -> (..., out), by this layer alone."""
        if self.disable_adapters or self.merged:
            return self.base_layer(x)
        name = self._active_adapter[0]
        weight, bias, scale = self.base_layer.weight, self.base_layer.bias, self.scaling[name]
        lora_a, lora_b = self.factors(name)
        norms = row_norms(weight.detach(), lora_a.detach(), lora_b.detach() * scale)
        out = F.linear(x, weight.to(x.dtype)) + low_rank(x, lora_a, lora_b, scale)
        out = out * (self.lora_magnitude_vector[name].weight / norms).to(x.dtype)
        return out if bias is None else out + bias


LIGHTWEIGHT_ADAPTERS = (LightweightLoRA, LightweightLoHa)


def khatri_rao(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """The row-wise products of each row of (r, n) `first` with each of (r, n) `second`: (r * r,
    n)."""
    return (first[:, None] * second[None]).flatten(0, 1)


def row_norms(
    weight: torch.Tensor,
    lora_a: torch.Tensor,
    lora_b: torch.Tensor,
    squares: torch.Tensor | None = None,
) -> torch.Tensor:
    """Norms of the rows of W + B A without B A itself: |w|^2 + 2 b (A w) + b (A A^T) b.

    Args:
        weight: (out, in), W.
        lora_a: (r, in), A.
        lora_b: (out, r), B times the adapter's scale.
        squares: (out,) the squared norms of W's rows, where the caller keeps them.

    Returns:
        (out,) float32.
    """
    squares = (weight.to(torch.float32) ** 2).sum(1) if squares is None else squares
    cross = squares + 2 * (F.linear(weight, lora_a.to(weight.dtype)).float() * lora_b).sum(1)
    update = ((lora_b @ (lora_a @ lora_a.T)).float() * lora_b).sum(1)
    return (cross + update).clamp_min(1e-12).sqrt()
