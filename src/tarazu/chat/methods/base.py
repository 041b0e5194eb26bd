"""The untouched model: what every method is weighed against."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from tarazu.recipe.schema import Method

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from tarazu.chat.model.trainable import TrainableChatModel


class ChatMethod(Method):
    """What every method of chat can do: take a loaded model and say exactly what may change in it."""

    def attach(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
    ) -> TrainableChatModel:
        """The model as this method trains it. Everything outside `trainable_names` is frozen."""
        raise TypeError(f"{type(self).__name__} has no attach")

    def quantization_refusal(self) -> str | None:
        """Why this method cannot train on a base whose weights are in 4 bits; None where it can."""
        return None


class Base(ChatMethod):
    """Nothing is trained."""

    kind: Literal["base"] = "base"

    def attach(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
    ) -> TrainableChatModel:
        from tarazu.chat.model.trainable import TrainableChatModel

        return TrainableChatModel(model.requires_grad_(False), frozenset(), base=model)
