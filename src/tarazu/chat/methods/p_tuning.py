"""P-tuning: a small network computes the soft prompt (Liu et al. 2021, arXiv:2103.10385).

    p = MLP(h)          x = [p_1 ... p_P ; e(w_1) ... e(w_n)]

The inputs h (P, width) and the network (three layers, hidden size `encoder_width`) are trained
together. The network couples the vectors of the prompt p (P, width). After training only p is
needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from tarazu.chat.methods.base import ChatMethod

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from tarazu.chat.model.trainable import TrainableChatModel


class PTuning(ChatMethod):
    """A soft prompt that peft's PromptEncoder, a network with two hidden layers, computes.

    The network starts so that the prompt has the mean and the scale of token embeddings. With
    peft's own random start the prompt is far larger than any embedding.
    """

    kind: Literal["p_tuning"] = "p_tuning"
    num_virtual_tokens: PositiveInt = 32
    encoder: Literal["MLP", "LSTM"] = "MLP"
    encoder_width: PositiveInt = Field(256, description="hidden width of the network")
    learning_rate: PositiveFloat = 3e-3

    def attach(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
    ) -> TrainableChatModel:
        """Freeze the model and put the network's soft prompt before its embeddings."""
        import peft

        from tarazu.chat.model.trainable import centre_prompt_on_embeddings, with_soft_prompt

        config = peft.PromptEncoderConfig(
            task_type="CAUSAL_LM",
            num_virtual_tokens=self.num_virtual_tokens,
            encoder_reparameterization_type=self.encoder,
            encoder_hidden_size=self.encoder_width,
        )
        trainable = with_soft_prompt(model, config)
        prompt_encoder: Any = trainable.module.prompt_encoder
        centre_prompt_on_embeddings(prompt_encoder["default"], model)
        return trainable
