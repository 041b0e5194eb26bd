"""Low-rank adapters' arithmetic with less work than peft's, on peft's own modules and parameters.

peft casts each input to float32, LoHa multiplies by a full-size update, and DoRA builds one to take its norm. Here inputs
stay as they are; LoHa's update is used in factors, for (B1 A1) * (B2 A2) = B A with B, A the column- and row-wise
products of the factors, rank r^2; and DoRA's norm comes from the factors too. Tests compare with peft's own forward.
"""

from __future__ import annotations

import peft.tuners.loha.layer as loha
import peft.tuners.lora.layer as lora
import torch
import torch.nn.functional as F
from torch import nn


def use_lightweight_forward(model: nn.Module) -> None:
    """Gives every low-rank adapter in `model` the forward of this file, where it has the same meaning."""
    for module in model.modules():
        if type(module) is lora.Linear and _plain_lora(module):
            module.__class__ = LightweightDoRA if module.lora_variant else LightweightLoRA
        elif (
            type(module) is loha.Linear
            and not any(module.module_dropout.values())
            and not any(module.rank_dropout.values())
        ):
            module.__class__ = LightweightLoHa


def has_lightweight_adapters(model: nn.Module) -> bool:
    """Whether adapters of `model` have this file's forward."""
    return any(isinstance(module, LIGHTWEIGHT_ADAPTERS) for module in model.modules())


def _plain_lora(module: lora.Linear) -> bool:
    """LoRA, or DoRA without dropout, whose adapters have no biases of their own."""
    name = module.active_adapters[0]
    dora = bool(module.lora_variant)
    dropout = isinstance(module.lora_dropout[name], nn.Dropout)
    known = not dora or type(module.lora_variant[name]).__name__ == "DoraLinearVariant"
    return (
        known
        and not (dora and dropout)
        and not module.fan_in_fan_out
        and not module.lora_bias[name]
    )


def low_rank(x: torch.Tensor, down: torch.Tensor, up: torch.Tensor, scale: float) -> torch.Tensor:
    """scale * (x down^T) up^T: (..., in) with `down` (r, in) and `up` (out, r) -> (..., out), in x's type."""
    return F.linear(F.linear(x, down.to(x.dtype)), (up * scale).to(x.dtype))


class _Added:
    """y = W x + s (up down) x, for adapters whose update is a product of two thin matrices."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        base = self.base_layer(x)
        if self.disable_adapters or self.merged:
            return base
        name = self._active_adapter[0]
        return base + low_rank(self.dropped(name, x), *self.factors(name), self.scaling[name])

    def dropped(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """The input of the adapter, in training with some numbers hidden."""
        return x


class LightweightLoRA(_Added, lora.Linear):
    """The update is B A."""

    def dropped(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return self.lora_dropout[name](x)

    def factors(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """(r, in) and (out, r)."""
        return self.lora_A[name].weight, self.lora_B[name].weight


class LightweightLoHa(_Added, loha.Linear):
    """The update is (B1 A1) * (B2 A2), rank r^2."""

    def factors(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """(r^2, in) and (out, r^2)."""
        up = khatri_rao(self.hada_w1_a[name].T, self.hada_w2_a[name].T).T
        return khatri_rao(self.hada_w1_b[name], self.hada_w2_b[name]), up


class LightweightDoRA(LightweightLoRA):
    """y = m (W + s B A) x / ||W + s B A||; the norm, of each row, is not differentiated (Liu et al. 2024, section 4.3)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.disable_adapters or self.merged:
            return self.base_layer(x)
        name = self._active_adapter[0]
        weight, bias, scale = self.base_layer.weight, self.base_layer.bias, self.scaling[name]
        down, up = self.factors(name)
        length = row_norms(weight.detach(), down.detach(), up.detach() * scale)
        turned = F.linear(x, weight.to(x.dtype)) + low_rank(x, down, up, scale)
        out = turned * (self.lora_magnitude_vector[name].weight / length).to(x.dtype)
        return out if bias is None else out + bias


LIGHTWEIGHT_ADAPTERS = (LightweightLoRA, LightweightLoHa)


def khatri_rao(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """(r, n) and (r, n) -> (r * r, n): the product of each row of the one with each of the other."""
    return (first[:, None] * second[None]).flatten(0, 1)


def row_norms(
    weight: torch.Tensor, down: torch.Tensor, up: torch.Tensor, squares: torch.Tensor | None = None
) -> torch.Tensor:
    """(out,): the norms of the rows of W + B A, without making B A: |w|^2 + 2 b.(A w) + b (A A^T) b. `squares`: |w|^2, if known."""
    squares = (weight.to(torch.float32) ** 2).sum(1) if squares is None else squares
    crossed = squares + 2 * (F.linear(weight, down.to(weight.dtype)).float() * up).sum(1)
    return (crossed + ((up @ (down @ down.T)).float() * up).sum(1)).clamp_min(1e-12).sqrt()
