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
    """The first `first` and last `last` decoder blocks, and whichever other parts are named."""

    kind: Literal["layers"] = "layers"
    first: NonNegativeInt = 2
    last: NonNegativeInt = 2
    embeddings: bool = False
    final_norm: bool = False
    head: bool = False
    learning_rate: PositiveFloat = 1e-4

    def attach(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
    ) -> TrainableChatModel:
        """Raises `BadInput` when there are not so many blocks, or when the head is the embeddings (tied)."""
        from tarazu.chat.model.trainable import with_unfrozen

        decoder = model.get_decoder()
        count = len(decoder.layers)
        if (
            self.first + self.last > count
            or not self.first + self.last + self.embeddings + self.final_norm + self.head
        ):
            raise UserError(
                f"first {self.first} and last {self.last} of {count} layers",
                where="methods.layers",
                todo=f"name between 1 and {count} layers",
            )
        if (
            self.head
            and not self.embeddings
            and model.get_output_embeddings().weight is model.get_input_embeddings().weight
        ):
            raise UserError(
                "this model's head is its embeddings (tied)",
                where="methods.layers.head",
                todo="set embeddings: true too, or head: false",
            )
        parts = list(decoder.layers[: self.first]) + list(decoder.layers[count - self.last :])
        parts += (
            [model.get_input_embeddings()] * self.embeddings
            + [decoder.norm] * self.final_norm
            + [model.get_output_embeddings()] * self.head
        )
        return with_unfrozen(model, parts)

    def why_not_packed(self) -> str | None:
        return (
            "packed weights are no numbers that a gradient could change, and blocks hold them"
            if self.first + self.last
            else None
        )
