"""LoHa: the update is the Hadamard product of two low-rank products, rank up to r^2 (Hyeon-Woo et al. 2021, arXiv:2108.06098).

y = W x + (alpha / r) ((B1 A1) * (B2 A2)) x
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import PositiveFloat

from tarazu.chat.methods.lora import LowRank


class LoHa(LowRank):
    """Hadamard product of two low-rank updates."""

    kind: Literal["loha"] = "loha"
    learning_rate: PositiveFloat = 1e-3

    def peft_config(self) -> Any:
        import peft

        return peft.LoHaConfig(
            r=self.rank,
            alpha=self.alpha,
            module_dropout=self.dropout,
            target_modules=self.targets,
            task_type="CAUSAL_LM",
        )

    def quantization_refusal(self) -> str | None:
        return "peft builds LoHa's update in the shape of the weight's bytes, which are packed"
