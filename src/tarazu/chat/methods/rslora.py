"""rsLoRA: LoRA scaled by alpha / sqrt(rank), so that a high rank still learns (Kalajdzievski 2023, arXiv:2312.03732)."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import PositiveFloat, PositiveInt

from tarazu.chat.methods.lora import LowRank


class RsLoRA(LowRank):
    """LoRA with the rank-stabilised scale."""

    kind: Literal["rslora"] = "rslora"
    rank: PositiveInt = 64
    alpha: PositiveInt = 16
    learning_rate: PositiveFloat = 1e-4

    def lora_kwargs(self) -> dict[str, Any]:
        return super().lora_kwargs() | {"use_rslora": True}
