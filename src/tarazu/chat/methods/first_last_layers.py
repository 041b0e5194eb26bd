"""Layers: train the first and last decoder blocks, freeze the rest. Plain PyTorch, without peft.

trained: blocks 0 ... num_first - 1 and L - num_last ... L - 1 of the L decoder blocks,
         and, if the recipe says so, the embeddings, the final norm and the output head
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import NonNegativeInt, PositiveFloat

from tarazu.chat.methods.base import ChatMethod
from tarazu.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from tarazu.chat.model.trainable import TrainableChatModel


class Layers(ChatMethod):
    """Unfreeze the `num_first` first and `num_last` last decoder blocks, and named other parts."""

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
        """Unfreeze the chosen parts of the model and freeze everything else.

        Raises:
            UserError: the model has fewer blocks, nothing is chosen, or the head is tied to
                embeddings that stay frozen.
        """
        from tarazu.chat.model.trainable import with_unfrozen

        causal_lm: Any = model  # transformers leaves the accessors below untyped
        decoder = causal_lm.get_decoder()
        embed_tokens = causal_lm.get_input_embeddings()
        head = causal_lm.get_output_embeddings()
        self._check(len(decoder.layers), head.weight is embed_tokens.weight)

        parts = list(decoder.layers[: self.num_first])
        parts += list(decoder.layers[len(decoder.layers) - self.num_last :])
        if self.embeddings:
            parts.append(embed_tokens)
        if self.final_norm:
            parts.append(decoder.norm)
        if self.lm_head:
            parts.append(head)
        return with_unfrozen(model, parts)

    def quantization_refusal(self) -> str | None:
        """Blocks hold 4-bit weights, which are packed bytes without gradients."""
        if self.num_first + self.num_last == 0:
            return None
        return "4-bit weights are packed bytes without gradients, and decoder blocks hold them"

    def _check(self, num_blocks: int, tied: bool) -> None:
        blocks = self.num_first + self.num_last
        chosen = blocks + self.embeddings + self.final_norm + self.lm_head
        if blocks > num_blocks or not chosen:
            raise UserError(
                f"num_first {self.num_first} and num_last {self.num_last} of {num_blocks} layers",
                location="methods.layers",
                hint=f"name between 1 and {num_blocks} layers",
            )
        if self.lm_head and not self.embeddings and tied:
            raise UserError(
                "this model's output head is tied to its embeddings",
                location="methods.layers.lm_head",
                hint="set embeddings: true too, or lm_head: false",
            )
