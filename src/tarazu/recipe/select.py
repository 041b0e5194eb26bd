"""Some of a recipe's methods."""

from __future__ import annotations

from collections.abc import Sequence

from tarazu.errors import UserError
from tarazu.recipe.schema import Recipe


def select_methods(recipe: Recipe, methods: Sequence[str]) -> Recipe:
    """The recipe with only the named methods; with no name, all of them.

    Raises:
        UserError: the recipe has no such method.
    """
    unknown = [name for name in methods if name not in recipe.methods]
    if unknown:
        raise UserError(
            f"no method {unknown[0]!r} in this recipe",
            location="--method",
            hint=f"one of: {', '.join(recipe.methods)}",
        )
    if not methods:
        return recipe
    chosen = {name: method for name, method in recipe.methods.items() if name in methods}
    return recipe.model_copy(update={"methods": chosen})
