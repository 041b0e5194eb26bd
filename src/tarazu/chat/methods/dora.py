"""DoRA: train magnitude and direction of each weight apart (Liu et al. 2024, arXiv:2402.09353).

    V = W + (alpha / r) B A          the direction: a weight with a LoRA update
    y = (m * V / ||V||) x            the magnitude m, one number for each output feature

W (out, in) is frozen. A (r, in), B (out, r) and m (out,) are trained. ||V|| (out,) is the norm of
each row of V. m starts as the row norms of W and B at zero, so that step 0 is the base model.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import PositiveFloat

from tarazu.chat.methods.lora import LowRank


class DoRA(LowRank):
    """LoRA for the direction of each weight, and a trained vector for its magnitude."""

    kind: Literal["dora"] = "dora"
    learning_rate: PositiveFloat = 5e-4

    def lora_kwargs(self) -> dict[str, Any]:
        """LoRA's arguments with the magnitude vector."""
        return super().lora_kwargs() | {"use_dora": True}
