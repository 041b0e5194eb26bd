"""The base class of tuning methods, whose `attach` makes a model trainable, and method `base`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from tarazu.recipe.schema import Method

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from tarazu.chat.model.trainable import TrainableChatModel


class ChatMethod(Method):
    """A tuning method: its settings, and how it makes a loaded model trainable."""

    def attach(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
    ) -> TrainableChatModel:
        """Freeze the model and add what this method trains.

        Args:
            model: the loaded base model; the method may change it in place.
            tokenizer: its tokenizer, for methods that start from a text.

        Returns:
            The model with `trainable_names`; every other parameter is frozen.

        Raises:
            UserError: the settings do not fit this model.
        """
        raise NotImplementedError

    def quantization_refusal(self) -> str | None:
        """The reason why this method cannot train on 4-bit weights, or None if it can."""
        return None


class Base(ChatMethod):
    """The base model itself: nothing is trained."""

    kind: Literal["base"] = "base"

    def attach(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
    ) -> TrainableChatModel:
        """Freeze every parameter."""
        from tarazu.chat.model.trainable import TrainableChatModel

        return TrainableChatModel(model.requires_grad_(False), frozenset(), base=model)
