"""The recipe of the digits task. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from tarazu.recipe.schema import Method, Recipe, StrictModel


class Linear(Method):
    """Logistic regression on the seven segments."""

    kind: Literal["linear"] = "linear"


class Mlp(Method):
    """One hidden layer with ReLU."""

    kind: Literal["mlp"] = "mlp"
    hidden_size: PositiveInt = 16


class DigitsData(StrictModel):
    """How many digits are drawn, and how noisy their segments are."""

    rows: PositiveInt = 300
    noise: float = Field(0.3, ge=0, description="standard deviation of the noise on each segment")


class DigitsRecipe(Recipe):
    """`task: digits`."""

    task: Literal["digits"]
    data: DigitsData = DigitsData()
    methods: dict[str, Annotated[Linear | Mlp, Field(discriminator="kind")]]
