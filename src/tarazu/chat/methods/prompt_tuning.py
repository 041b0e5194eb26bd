"""Prompt tuning: trained vectors in front of the word embeddings (Lester et al. 2021, arXiv:2104.08691).

x = [p_1 ... p_P ; e(w_1) ... e(w_n)]      P vectors of the model's width are all that is trained
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from tarazu.chat.methods.base import ChatMethod

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from tarazu.chat.model.trainable import TrainableChatModel

INSTRUCTION = "به پرسش‌های کاربر به فارسیِ روان، درست و کوتاه پاسخ بده. "


class PromptTuning(ChatMethod):
    """A soft prompt of `num_virtual_tokens` vectors.

    A random start is some 50 times larger than word embeddings, so it begins from a text or from random words.
    """

    kind: Literal["prompt_tuning"] = "prompt_tuning"
    num_virtual_tokens: PositiveInt = 32
    init: Literal["text", "vocabulary"] = Field("text", description="what the vectors begin as")
    init_text: str = Field(
        INSTRUCTION, min_length=1, description="repeated or cut to the number of virtual tokens"
    )
    learning_rate: PositiveFloat = 3e-2

    def attach(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
    ) -> TrainableChatModel:
        import peft

        from tarazu.chat.model.trainable import initial_token_ids, with_soft_prompt

        ids = initial_token_ids(
            tokenizer, self.init_text if self.init == "text" else None, self.num_virtual_tokens
        )
        start = (
            model.get_input_embeddings()(ids.to(model.device)).detach().float()
        )  # the module: Gemma 3 scales in it
        config = peft.PromptTuningConfig(
            task_type="CAUSAL_LM",
            num_virtual_tokens=self.num_virtual_tokens,
            prompt_tuning_init="RANDOM",
        )
        trainable = with_soft_prompt(model, config)
        trainable.module.prompt_encoder["default"].embedding.weight.data.copy_(start)
        return trainable
