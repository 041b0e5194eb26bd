"""DoRA: LoRA turns the direction of each weight, a trained vector sets its length (Liu et al. 2024, arXiv:2402.09353).

y = m * (W + (alpha / r) B A) x / ||W + (alpha / r) B A||      m: (out,), the column norms of W at the start
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import PositiveFloat

from tarazu.chat.methods.lora import LowRank


class DoRA(LowRank):
    """LoRA with magnitude and direction apart."""

    kind: Literal["dora"] = "dora"
    learning_rate: PositiveFloat = 5e-4

    def lora_kwargs(self) -> dict[str, Any]:
        return super().lora_kwargs() | {"use_dora": True}
