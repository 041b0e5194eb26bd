"""P-tuning: the soft prompt comes out of a small network (Liu et al. 2021, arXiv:2103.10385).

p_i = MLP(h_i)      the h_i and the network are trained together; only the p_i are needed afterwards
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from tarazu.chat.methods.base import ChatMethod

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from tarazu.chat.model.trainable import TrainableChatModel


class PTuning(ChatMethod):
    """A soft prompt that a two-hidden-layer network (peft's PromptEncoder) writes.

    The last layer's bias begins as the mean word embedding and the first layers at the scale of words: from peft's own
    random start the prompt is far larger than any word.
    """

    kind: Literal["p_tuning"] = "p_tuning"
    num_virtual_tokens: PositiveInt = 32
    encoder: Literal["MLP", "LSTM"] = "MLP"
    encoder_width: PositiveInt = Field(256, description="hidden width of the network")
    learning_rate: PositiveFloat = 3e-3

    def attach(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
    ) -> TrainableChatModel:
        import peft

        from tarazu.chat.model.trainable import centre_prompt_on_embeddings, with_soft_prompt

        config = peft.PromptEncoderConfig(
            task_type="CAUSAL_LM",
            num_virtual_tokens=self.num_virtual_tokens,
            encoder_reparameterization_type=self.encoder,
            encoder_hidden_size=self.encoder_width,
        )
        trainable = with_soft_prompt(model, config)
        centre_prompt_on_embeddings(trainable.module.prompt_encoder["default"], model)
        return trainable
