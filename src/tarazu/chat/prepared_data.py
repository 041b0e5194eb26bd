"""What a chat study computes once before its first method: rows, questions, passages."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

import tarazu
from tarazu.chat.data import chat_template, dataset
from tarazu.chat.evaluation import forgetting, questions, reading_comprehension
from tarazu.chat.model import loading
from tarazu.chat.settings import ChatRecipe, Sources
from tarazu.errors import UserError
from tarazu.storage.atomic_io import write_json
from tarazu.storage.cache import cache_dir
from tarazu.storage.run_folder import StudyDir


@dataclass
class ChatData:
    """The prepared data of a chat study.

    Args:
        store: tokenized rows of the three splits.
        template: renders turns and encodes prompts.
        tokenizer: the model's tokenizer.
        questions: the designed questions that every method answers.
        packed: whether several rows share a line of a batch.
        forgetting: passages by language, whose loss shows what the model forgets.
        reading: reading-comprehension questions.
    """

    store: dataset.ChatDataset
    template: chat_template.Template
    tokenizer: PreTrainedTokenizerBase
    questions: list[questions.Question]
    packed: bool
    forgetting: dict[str, forgetting.Passages] = field(default_factory=dict)
    reading: list[dict[str, Any]] = field(default_factory=list)

    def size(self, split: str) -> int:
        """Number of rows in the split."""
        return self.store.size(split)


def prepare(recipe: ChatRecipe, folder: StudyDir, device: torch.device) -> ChatData:
    """Read, split and tokenize the rows, and write data.json.

    Raises:
        UserError: the rows cannot be used, or a text changed that finished methods were measured
            on.
    """
    tokenizer = loading.load_tokenizer(recipe.model, recipe.revision)
    model_type = loading.model_type(recipe.model, recipe.revision)
    template = chat_template.select_template(tokenizer, model_type)
    settings = recipe.data
    source = settings.source
    rows = dataset.prepare(
        resolve_samples(source.model_dump() if isinstance(source, Sources) else source),
        tokenizer,
        template,
        max_length=settings.max_length,
        split=settings.split.model_dump(),
        seed=settings.split_seed,
        cache=cache_dir() / "rows",
        rows=settings.rows,
        duplicates=settings.duplicates,
        note=settings.model_dump()["note"],
    )
    designed = questions.load(resolve_samples(recipe.questions)) if recipe.questions else []
    passages = forgetting.prepare(recipe.forgetting, template) if recipe.forgetting else {}
    reading = reading_comprehension.prepare(recipe.reading, template) if recipe.reading else []
    texts: dict[str, Any] = {
        "forgetting": {language: text.describe() for language, text in passages.items()}
    }
    if recipe.reading:
        texts["reading"] = reading_comprehension.describe(recipe.reading, reading)
    _require_unchanged(folder, texts)
    # Names as the recipe gives them, not the paths they have on this machine.
    names = {"tokenizer": recipe.model, "source": _describe_source(source)}
    write_json(folder.path / "data.json", {**rows.summary(), **names, **texts})
    packed = recipe.layout == "packed" or (recipe.layout == "auto" and device.type == "cuda")
    return ChatData(rows, template, tokenizer, designed, packed, passages, reading)


def _require_unchanged(folder: StudyDir, texts: dict[str, Any]) -> None:
    """Raise `UserError` if a text changed that finished methods were measured on."""
    before = folder.read_json("data.json") or {}
    for name, described in texts.items():
        if before.get(name, described) != described:
            raise UserError(
                f"the text of `{name}` changed since this study began",
                location=str(folder.path),
                hint="bring the old text back, or start a new study with --out",
            )


def _describe_source(source: str | list[str] | Sources) -> str:
    """A source in one line."""
    if isinstance(source, Sources):
        return ", ".join(f"{split}: {path}" for split, path in source.model_dump().items())
    return source if isinstance(source, str) else ", ".join(source)


def resolve_samples(source: Any) -> Any:
    """Replace `samples:NAME` by the path of a shipped file.

    Args:
        source: a path, a list of paths, or a path for each split.
    """
    if isinstance(source, dict):
        return {split: resolve_samples(path) for split, path in source.items()}
    if isinstance(source, list):
        return [resolve_samples(path) for path in source]
    if source.startswith("samples:"):
        return str(Path(tarazu.__file__).parent / "samples" / source.removeprefix("samples:"))
    return source
