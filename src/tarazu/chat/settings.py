"""The recipe of instruction tuning: its model, data, questions, generation and methods.

The keys that all tasks share are in `tarazu.recipe.schema`. Descriptions appear in the JSON schema
of recipes (docs/recipe.schema.json).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from tarazu.chat.methods import AnyMethod
from tarazu.recipe.schema import Budget, Recipe, StrictModel


class SplitFractions(StrictModel):
    """How one source is split. Identical conversations never land in two splits."""

    train: float = Field(0.9, gt=0, lt=1)
    validation: float = Field(0.05, gt=0, lt=1)
    test: float = Field(0.05, gt=0, lt=1)

    @model_validator(mode="after")
    def _add_up_to_one(self) -> SplitFractions:
        if not 0.999 < self.train + self.validation + self.test < 1.001:
            raise ValueError("train, validation and test must add up to 1")
        return self


class Sources(StrictModel):
    """Three sources, each a hub name, a file or a folder."""

    train: str
    validation: str
    test: str


class BilingualNote(StrictModel):
    """A remark in both languages of the report."""

    fa: str
    en: str


class ChatData(StrictModel):
    """The rows: their source, splits and maximum length."""

    source: str | list[str] | Sources = Field(
        description="hub name, file (.jsonl, .jsonl.gz, .json, .csv, .parquet), folder, "
        "or a list of them"
    )
    split: SplitFractions = SplitFractions()
    split_seed: int = 0
    rows: PositiveInt | None = Field(None, description="use only the first so many rows")
    max_length: PositiveInt = Field(
        1024, description="maximum tokens of a row; longer rows are cut, and counted"
    )
    duplicates: Literal["drop", "keep"] = "drop"
    note: str | BilingualNote | None = Field(
        None,
        description="shown in the report, for example what this data stands in for; "
        "{fa: ..., en: ...} for both languages",
    )


class Generation(StrictModel):
    """The answers in the report: greedy, to the same prompts for every method."""

    max_new_tokens: PositiveInt = 128
    num_test_answers: NonNegativeInt = Field(
        32, description="test rows that are answered (the loss covers all of them)"
    )
    batch_rows: PositiveInt = 16
    samples_per_validation: NonNegativeInt = Field(
        1, description="questions answered at every validation"
    )


class Forgetting(StrictModel):
    """Plain text whose loss is measured before and after training, to see what a method forgets."""

    english: str | None = Field(
        "samples:forgetting_en.txt",
        description="a .txt file of paragraphs, rows with `text`, or a hub name; null to skip",
    )
    persian: str | None = Field(
        "samples:forgetting_fa.txt", description="the same for Persian; null to skip"
    )
    max_length: int = Field(256, ge=2, description="tokens read of each passage")
    rows: PositiveInt = Field(200, description="maximum passages of each language, from the start")


class Reading(StrictModel):
    """Questions about a passage with short references: exact match and F1."""

    source: str = Field(description="hub name, file or folder, of any schema that `data` takes")
    rows: PositiveInt = Field(64, description="number of questions, drawn by a hash")
    max_new_tokens: PositiveInt = 24
    seed: int = 0
    unanswerable: list[str] = Field(
        ["پاسخ این پرسش در متن نیامده است", "پاسخ در متن نیست", "پاسخ در متن نیامده است"],
        description="phrases that say that the passage has no answer",
    )


class ChatBudget(Budget):
    """The budget, and how many rows a validation reads."""

    validation_rows: PositiveInt | None = Field(
        None, description="validation rows used while training; default: all"
    )


class ChatRecipe(Recipe):
    """`task: chat`."""

    task: Literal["chat"]
    model: str = Field(
        description="hub name, local folder, GGUF file, or gemma-3-270m (part of a PyPI package)"
    )
    revision: str | None = None
    data: ChatData
    budget: ChatBudget
    questions: str | None = Field(
        "samples:questions_fa.jsonl", description="designed questions, JSON lines"
    )
    generation: Generation = Generation()
    forgetting: Forgetting | None = Field(Forgetting(), description="null to skip")
    reading: Reading | None = Field(None, description="reading comprehension with right answers")
    attention: Literal["auto", "flash", "flex", "sdpa", "eager"] = Field(
        "auto",
        description="auto: the fastest that works here; flash: FlashAttention 4 (a separate "
        "package) for training rows, flex elsewhere",
    )
    layout: Literal["auto", "packed", "padded"] = Field(
        "auto", description="how rows share a batch; auto: packed on a GPU"
    )
    memory: Literal["normal", "low"] = Field(
        "normal",
        description="low: gradient checkpointing, one row in a pass, the loss in small chunks; "
        "slower",
    )
    quantize: Literal["none", "4bit"] = Field(
        "none",
        description="4bit: the frozen linear layers in NF4 by bitsandbytes (QLoRA); "
        "less memory, slower",
    )
    fast: bool = Field(
        True,
        description="adapters with less arithmetic than peft's and, on a GPU with flex attention, "
        "compiled layers; false: the plain forward pass",
    )
    methods: dict[str, Annotated[AnyMethod, Field(discriminator="kind")]]

    @model_validator(mode="after")
    def _apply_low_memory(self) -> ChatRecipe:
        """`memory: low` turns on gradient checkpointing and bounds a pass by one row."""
        if self.memory == "low":
            micro_batch_tokens = min(self.budget.micro_batch_tokens, self.data.max_length)
            self.budget = self.budget.model_copy(
                update={"gradient_checkpointing": True, "micro_batch_tokens": micro_batch_tokens}
            )
        return self
