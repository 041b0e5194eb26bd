"""First and last layers: unfreeze whole decoder blocks, freeze the rest. Plain PyTorch, without peft."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import NonNegativeInt, PositiveFloat

from tarazu.chat.methods.base import ChatMethod
from tarazu.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from tarazu.chat.model.trainable import TrainableChatModel


class Layers(ChatMethod):
    """The first `num_first` and last `num_last` decoder blocks, and whichever other parts are named."""

    kind: Literal["layers"] = "layers"
    num_first: NonNegativeInt = 2
    num_last: NonNegativeInt = 2
    embeddings: bool = False
    final_norm: bool = False
    lm_head: bool = False
    learning_rate: PositiveFloat = 1e-4

    def attach(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
    ) -> TrainableChatModel:
        """Raises `UserError` when there are not so many blocks, or when the head is the embeddings (tied)."""
        from tarazu.chat.model.trainable import with_unfrozen

        decoder = model.get_decoder()
        count = len(decoder.layers)
        if (
            self.num_first + self.num_last > count
            or not self.num_first + self.num_last + self.embeddings + self.final_norm + self.lm_head
        ):
            raise UserError(
                f"num_first {self.num_first} and num_last {self.num_last} of {count} layers",
                location="methods.layers",
                hint=f"name between 1 and {count} layers",
            )
        if (
            self.lm_head
            and not self.embeddings
            and model.get_output_embeddings().weight is model.get_input_embeddings().weight
        ):
            raise UserError(
                "this model's head is its embeddings (tied)",
                location="methods.layers.lm_head",
                hint="set embeddings: true too, or lm_head: false",
            )
        parts = list(decoder.layers[: self.num_first]) + list(
            decoder.layers[count - self.num_last :]
        )
        parts += (
            [model.get_input_embeddings()] * self.embeddings
            + [decoder.norm] * self.final_norm
            + [model.get_output_embeddings()] * self.lm_head
        )
        return with_unfrozen(model, parts)

    def quantization_refusal(self) -> str | None:
        return (
            "packed weights are no numbers that a gradient could change, and blocks hold them"
            if self.num_first + self.num_last
            else None
        )
