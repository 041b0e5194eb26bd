"""LoHa: the Hadamard product of two low-rank updates (Hyeon-Woo et al. 2021, arXiv:2108.06098).

    y = W x + (alpha / r) ((B1 A1) * (B2 A2)) x          * multiplies element by element

W (out, in) is frozen. A1, A2 (r, in) and B1, B2 (out, r) are trained. The product of two matrices
of rank r has a rank of up to r^2, with only twice LoRA's parameters.
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
        """peft's LoHa configuration; its dropout drops whole modules."""
        import peft

        return peft.LoHaConfig(
            r=self.rank,
            alpha=self.alpha,
            module_dropout=self.dropout,
            target_modules=self.targets,
            task_type="CAUSAL_LM",
        )

    def quantization_refusal(self) -> str | None:
        """LoHa needs the shape of the weight, and a 4-bit layer stores a column of bytes."""
        return "peft gives LoHa's update the shape of the stored weight, which is packed bytes"
