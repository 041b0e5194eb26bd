"""Prefix tuning: trained keys and values in front of every layer's own (Li & Liang 2021, arXiv:2101.00190).

attention(q, [K_prefix ; K], [V_prefix ; V])      P pairs for each layer and key-value head
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from tarazu.chat.methods.base import ChatMethod

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from tarazu.chat.model.trainable import TrainableChatModel


class PrefixTuning(ChatMethod):
    """A prefix of `num_virtual_tokens` keys and values in every layer.

    It begins as the keys and values that the model itself computes for a text ("text"), which Li & Liang found best; a
    random start breaks the model first. `projection` trains a network that writes the prefix instead.
    """

    kind: Literal["prefix_tuning"] = "prefix_tuning"
    num_virtual_tokens: PositiveInt = 32
    projection: bool = Field(
        False, description="train a network that writes the prefix (starts from random)"
    )
    projection_width: PositiveInt = 256
    init_text: str | None = Field(
        None, description="what the prefix begins as; default: prompt tuning's text"
    )
    learning_rate: PositiveFloat = 3e-2

    def attach(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
    ) -> TrainableChatModel:
        import peft

        from tarazu.chat.methods.prompt_tuning import INSTRUCTION
        from tarazu.chat.model.trainable import initial_token_ids, with_prefix

        config = peft.PrefixTuningConfig(
            task_type="CAUSAL_LM",
            num_virtual_tokens=self.num_virtual_tokens,
            prefix_projection=self.projection,
            encoder_hidden_size=self.projection_width,
        )
        ids = (
            None
            if self.projection
            else initial_token_ids(
                tokenizer, self.init_text or INSTRUCTION, self.num_virtual_tokens
            )
        )
        return with_prefix(model, config, ids)
