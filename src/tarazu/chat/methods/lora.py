"""LoRA: add a trained low-rank update to each frozen weight (Hu et al. 2021, arXiv:2106.09685).

    y = W x + (alpha / r) B A x

W (out, in) is frozen. A (r, in) and B (out, r) are trained. B starts at zero, so that step 0 is
exactly the base model. A layer trains r (in + out) parameters in place of in * out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from tarazu.chat.methods.base import ChatMethod

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from tarazu.chat.model.trainable import TrainableChatModel


class LowRank(ChatMethod):
    """The settings that all low-rank methods share: rank, scale, dropout and target layers."""

    rank: PositiveInt = 16
    alpha: PositiveInt = 32
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: str | list[str] = Field(
        "all-linear", description="all-linear, or the ends of module names (q_proj, v_proj)"
    )

    def peft_config(self) -> Any:
        """peft's configuration of this method."""
        import peft

        return peft.LoraConfig(**self.lora_kwargs())

    def lora_kwargs(self) -> dict[str, Any]:
        """The arguments of `peft.LoraConfig`; subclasses add their switch."""
        return {
            "r": self.rank,
            "lora_alpha": self.alpha,
            "lora_dropout": self.dropout,
            "target_modules": self.targets,
            "task_type": "CAUSAL_LM",
        }

    def attach(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
    ) -> TrainableChatModel:
        """Add an adapter to every target layer and freeze everything else.

        Raises:
            UserError: no module has one of the `targets`' names; the error lists the nearest names.
        """
        from tarazu.chat.model.trainable import with_adapters

        return with_adapters(model, self.peft_config(), self.targets)


class LoRA(LowRank):
    """Low-rank adapters, scaled by alpha / rank."""

    kind: Literal["lora"] = "lora"
    learning_rate: PositiveFloat = 5e-4
