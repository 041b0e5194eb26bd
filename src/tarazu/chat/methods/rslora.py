"""rsLoRA: LoRA scaled by alpha / sqrt(rank) (Kalajdzievski 2023, arXiv:2312.03732).

    y = W x + (alpha / sqrt(r)) B A x

LoRA's alpha / r shrinks the update, and with it the gradients, as the rank grows. The square root
keeps their size independent of the rank, so that a high rank still trains. Shapes are as in
`lora.py`.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import PositiveFloat, PositiveInt

from tarazu.chat.methods.lora import LowRank


class RsLoRA(LowRank):
    """LoRA with the rank-stabilized scale."""

    kind: Literal["rslora"] = "rslora"
    rank: PositiveInt = 64
    alpha: PositiveInt = 16
    learning_rate: PositiveFloat = 1e-4

    def lora_kwargs(self) -> dict[str, Any]:
        """LoRA's arguments with the scale alpha / sqrt(rank)."""
        return super().lora_kwargs() | {"use_rslora": True}
