"""Prompt tuning: trained vectors before the embeddings (Lester et al. 2021, arXiv:2104.08691).

    x = [p_1 ... p_P ; e(w_1) ... e(w_n)]

e(w_i) (width,) are the frozen embeddings of a row's n tokens. The soft prompt p (P, width) is all
that is trained. The model reads the P + n vectors as one sequence; the loss is on tokens of the
row only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from tarazu.chat.methods.base import ChatMethod

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from tarazu.chat.model.trainable import TrainableChatModel

INSTRUCTION = "به پرسش‌های کاربر به فارسیِ روان، درست و کوتاه پاسخ بده. "


class PromptTuning(ChatMethod):
    """A soft prompt of `num_virtual_tokens` vectors.

    It starts as the embeddings of a text or of random tokens. peft's normally distributed start is
    about 50 times larger than token embeddings.
    """

    kind: Literal["prompt_tuning"] = "prompt_tuning"
    num_virtual_tokens: PositiveInt = 32
    init: Literal["text", "vocabulary"] = Field(
        "text", description="initial vectors: embeddings of init_text, or of random tokens"
    )
    init_text: str = Field(
        INSTRUCTION,
        min_length=1,
        description="repeated or cut to the number of virtual tokens",
    )
    learning_rate: PositiveFloat = 3e-2

    def attach(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
    ) -> TrainableChatModel:
        """Freeze the model and put the soft prompt before its embeddings."""
        import peft

        from tarazu.chat.model.trainable import initial_token_ids, with_soft_prompt

        # 1. the embeddings to start from, (P, width). The embedding module is called, not indexed,
        #    because Gemma 3 scales its embeddings inside the module.
        text = self.init_text if self.init == "text" else None
        ids = initial_token_ids(tokenizer, text, self.num_virtual_tokens)
        embed_tokens: Any = model.get_input_embeddings()
        initial_prompt = embed_tokens(ids.to(model.device)).detach().float()

        # 2. peft's soft prompt, with its random start replaced
        config = peft.PromptTuningConfig(
            task_type="CAUSAL_LM",
            num_virtual_tokens=self.num_virtual_tokens,
            prompt_tuning_init="RANDOM",
        )
        trainable = with_soft_prompt(model, config)
        prompt_encoder: Any = trainable.module.prompt_encoder
        prompt_encoder["default"].embedding.weight.data.copy_(initial_prompt)
        return trainable
