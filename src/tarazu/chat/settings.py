"""The recipe of instruction tuning: the shared keys, and the model, data, questions and generation of a chat study."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from tarazu.chat.methods import AnyMethod
from tarazu.recipe.schema import Budget, Recipe, StrictModel


class SplitFractions(StrictModel):
    """How one source is split; identical conversations never land in two splits."""

    train: float = Field(0.9, gt=0, lt=1)
    validation: float = Field(0.05, gt=0, lt=1)
    test: float = Field(0.05, gt=0, lt=1)

    @model_validator(mode="after")
    def _whole(self) -> SplitFractions:
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
    """Where the rows come from and how they are cut."""

    source: str | list[str] | Sources = Field(
        description="hub name, file (.jsonl, .jsonl.gz, .json, .csv, .parquet), folder, or a list of them"
    )
    split: SplitFractions = SplitFractions()
    split_seed: int = 0
    rows: PositiveInt | None = Field(None, description="use only so many rows, from the start")
    max_length: PositiveInt = Field(
        1024, description="most tokens of a row; what is over is cut, and counted"
    )
    duplicates: Literal["drop", "keep"] = "drop"
    note: str | BilingualNote | None = Field(
        None,
        description="shown in the report: what this data stands in for, say; {fa: ..., en: ...} says it in both languages",
    )


class Generation(StrictModel):
    """The answers that are written for the report: greedy, the same rows for every method."""

    max_new_tokens: PositiveInt = 128
    num_test_answers: NonNegativeInt = Field(
        32, description="test rows that are answered (the loss is over all of them)"
    )
    batch_rows: PositiveInt = 16
    samples_per_validation: NonNegativeInt = Field(
        1, description="questions answered at every validation"
    )


class Forgetting(StrictModel):
    """Plain text on which the loss is measured before and after, to see what a method forgets."""

    english: str | None = Field(
        "samples:forgetting_en.txt",
        description="a .txt file of paragraphs, rows with `text`, or a hub name",
    )
    persian: str | None = Field(
        "samples:forgetting_fa.txt", description="the same for Persian; null to skip"
    )
    max_length: int = Field(256, ge=2, description="most tokens of a passage; the rest is not read")
    rows: PositiveInt = Field(200, description="most passages of each, from the start")


class Reading(StrictModel):
    """Questions about a passage with short references: exact match and F1."""

    source: str = Field(description="hub name, file or folder, of any schema that `data` takes")
    rows: PositiveInt = Field(64, description="so many questions, drawn by hash")
    max_new_tokens: PositiveInt = 24
    seed: int = 0
    unanswerable: list[str] = Field(
        ["پاسخ این پرسش در متن نیامده است", "پاسخ در متن نیست", "پاسخ در متن نیامده است"],
        description="what a reference or an answer says when the passage does not have it",
    )  # fmt: skip


class ChatBudget(Budget):
    """The budget, and how many rows a validation reads."""

    validation_rows: PositiveInt | None = Field(
        None, description="validation rows used while training; default: all"
    )


class ChatRecipe(Recipe):
    """`task: chat`."""

    task: Literal["chat"]
    model: str = Field(
        description="hub name, local folder, GGUF file, or gemma-3-270m (carried by a PyPI package)"
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
        description="flash: FlashAttention 4 (a package of its own) for rows, flex elsewhere; auto: the fastest that works here",
    )
    layout: Literal["auto", "packed", "padded"] = Field(
        "auto", description="how rows share a batch; auto: packed on a GPU"
    )
    memory: Literal["normal", "low"] = Field(
        "normal",
        description="low: checkpointing, one row a pass, the loss in small chunks; slower",
    )
    quantize: Literal["none", "4bit"] = Field(
        "none",
        description="4bit: the frozen linear layers in NF4 through bitsandbytes (QLoRA): less memory, slower",
    )
    fast: bool = Field(
        True,
        description="adapters with less arithmetic than peft's and, on a GPU with flex attention, compiled layers; false: the plain path",
    )
    methods: dict[str, Annotated[AnyMethod, Field(discriminator="kind")]]

    @model_validator(mode="after")
    def _small(self) -> ChatRecipe:
        if self.memory == "low":
            passes = min(self.budget.micro_batch_tokens, self.data.max_length)
            self.budget = self.budget.model_copy(
                update={"gradient_checkpointing": True, "micro_batch_tokens": passes}
            )
        return self
