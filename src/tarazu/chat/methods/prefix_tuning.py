"""Prefix tuning: trained keys and values in every layer (Li & Liang 2021, arXiv:2101.00190).

    attention(q, [K_prefix ; K], [V_prefix ; V])

K_prefix and V_prefix (key-value heads, P, head size) are trained for each layer. The model itself
is frozen. Unlike a soft prompt, the prefix takes no position of the sequence.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from tarazu.chat.methods.base import ChatMethod
from tarazu.chat.methods.prompt_tuning import INSTRUCTION

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from tarazu.chat.model.trainable import TrainableChatModel


class PrefixTuning(ChatMethod):
    """A prefix of `num_virtual_tokens` keys and values in every layer.

    The prefix starts as the keys and values that the model computes for a text. Li & Liang found
    this best; a random start breaks the model at first. With `projection`, a network computes the
    prefix.
    """

    kind: Literal["prefix_tuning"] = "prefix_tuning"
    num_virtual_tokens: PositiveInt = 32
    projection: bool = Field(
        False, description="train a network that computes the prefix (starts at random)"
    )
    projection_width: PositiveInt = 256
    init_text: str | None = Field(
        None, description="text that the prefix starts from; default: prompt tuning's text"
    )
    learning_rate: PositiveFloat = 3e-2

    def attach(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
    ) -> TrainableChatModel:
        """Freeze the model and put the prefix before the keys and values of every layer."""
        import peft

        from tarazu.chat.model.trainable import initial_token_ids, with_prefix

        config = peft.PrefixTuningConfig(
            task_type="CAUSAL_LM",
            num_virtual_tokens=self.num_virtual_tokens,
            prefix_projection=self.projection,
            encoder_hidden_size=self.projection_width,
        )
        if self.projection:  # the network's output starts at random
            return with_prefix(model, config, None)
        text = self.init_text or INSTRUCTION
        ids = initial_token_ids(tokenizer, text, self.num_virtual_tokens)
        return with_prefix(model, config, ids)
