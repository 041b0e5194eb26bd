"""Which tuning methods work with which form of the base model."""

from __future__ import annotations

from tarazu.chat.model import quantization
from tarazu.chat.settings import ChatRecipe
from tarazu.errors import UserError


def require_compatible(recipe: ChatRecipe, name: str) -> None:
    """Check that a method can train on the base model as the recipe quantizes it.

    Args:
        recipe: the recipe.
        name: the method's name in the recipe.

    Raises:
        UserError: bitsandbytes is not installed, or the method cannot train on a 4-bit base.
    """
    if recipe.quantize == "none":
        return
    if not quantization.is_installed():
        raise UserError(
            f"a 4-bit base model needs {quantization.PACKAGE}, which is not installed",
            location="quantize",
            hint="pip install 'tarazu[quantized]'",
        )
    reason = recipe.methods[name].quantization_refusal()
    if reason:
        raise UserError(
            f"not with quantize: {recipe.quantize}: {reason}",
            location=f"methods.{name}",
            hint="leave this method out (--method names the others), or quantize: none",
        )
