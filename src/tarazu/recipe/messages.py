"""Errors of a recipe in plain words: the position, the key, and the key that was probably meant."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

RENAMED_KEYS = {
    "average": "ema_decay",
    "beam_stop": "early_stopping",
    "clip": "max_grad_norm",
    "crop": "min_crop_area",
    "during_training": "samples_per_validation",
    "first": "num_first",
    "head": "lm_head",
    "hidden": "hidden_size",
    "last": "num_last",
    "layers": "num_layers",
    "mirrored": "flip_tta",
    "near": "max_hash_distance",
    "of": "members",
    "share": "sample_fraction",
    "start": "init",
    "test_rows": "num_test_answers",
    "text": "init_text",
    "tie_words": "tie_embeddings",
    "together": "captions_per_group",
    "views": "num_augmentations",
    "virtual_tokens": "num_virtual_tokens",
    "warmup": "warmup_ratio",
    "watch": "monitor",
    "widen": "extend_range",
}
"""Keys of version 0.1 and their new names. An old key is an error that names the new key."""

RENAMED_VALUES = {("memory", "small"): "low", ("source", "drawn"): "synthetic"}
"""Values of version 0.1, by key, and their new names."""


Path = tuple[int | str, ...]  # keys and list indices from the top of a recipe


def locate(tree: Any, path: Path, location: str) -> str:
    """The position of a key.

    Args:
        tree: the parsed recipe.
        path: keys and list indices from the top.
        location: the file's name.

    Returns:
        `file:line:column` of the deepest part of `path` that is in the file.
    """
    line, column = 0, 0
    for part in path:
        marks = getattr(tree, "lc", None)
        try:
            if isinstance(tree, dict) and part in tree:
                line, column = marks.key(part) if marks else (line, column)
                tree = tree[part]
            elif isinstance(tree, list) and isinstance(part, int):
                line, column = marks.item(part) if marks else (line, column)
                tree = tree[part]
        except (KeyError, TypeError, AttributeError):  # --set adds keys without a position
            break
    return f"{location}:{line + 1}:{column + 1}"


def explain(
    error: ValidationError,
    model: type[BaseModel],
    tree: Any,
    location: str,
    overrides: Sequence[str] = (),
) -> str:
    """All errors of a recipe, one a line.

    Args:
        error: what pydantic found.
        model: the recipe class.
        tree: the parsed recipe, with its overrides.
        location: the file's name.
        overrides: the `a.b=c` that changed the file's keys.
    """
    lines = []
    for problem in error.errors():
        path = problem["loc"]
        # pydantic puts the kind of a method after its name; the file does not have it there.
        shown = path[:2] + path[3:] if path[0:1] == ("methods",) else path
        position = _assignment(problem, shown, tree, overrides) or locate(tree, path, location)
        lines.append(f"{position}: {'.'.join(map(str, shown))}: {_message(problem, model)}")
    return "the recipe cannot be used:\n  " + "\n  ".join(lines)


def _message(problem: ErrorDetails, model: type[BaseModel]) -> str:
    """One error in plain words; pydantic's own words where there are no better ones."""
    key, value = problem["loc"][-1] if problem["loc"] else "", problem["input"]
    match problem["type"]:
        case "extra_forbidden":
            return _unknown_key(str(key), _keys(model, problem["loc"][:-1]))
        case "union_tag_invalid":
            tag = problem["ctx"]["tag"]
            kinds = problem["ctx"]["expected_tags"].replace("'", "")
            suggestion = _suggestion(tag, kinds.split(", "))
            return f"no kind of method is called {tag!r}: one of {kinds}{suggestion}"
        case "literal_error" if (key, value) in RENAMED_VALUES:
            return renamed_value(str(key), value)
        case "int_parsing" | "float_parsing" if digits := _with_latin_digits(value):
            return f"a number in a recipe has the digits 0 to 9: write {digits}"
    return problem["msg"].removeprefix("Value error, ")


def _unknown_key(key: str, keys: Collection[str]) -> str:
    if (new := RENAMED_KEYS.get(key)) in keys:
        return f"{key!r} has been renamed to {new!r} in version 0.2"
    return f"unknown key {key!r}{_suggestion(key, keys)}"


def renamed_value(key: str, value: str) -> str:
    """The message for a value of `RENAMED_VALUES`."""
    return f"{value!r} has been renamed to {RENAMED_VALUES[key, value]!r} in version 0.2"


def _with_latin_digits(text: str) -> str:
    """A number in Persian, Arabic or other digits, written with 0 to 9; empty for other text."""
    text = text.strip()
    decimal = "".join(str(unicodedata.decimal(letter, letter)) for letter in text)
    decimal = decimal.replace("٬", "").replace("٫", ".")
    return decimal if decimal != text and re.fullmatch(r"[+-]?[\d_]+(\.\d*)?", decimal) else ""


def _suggestion(word: str, candidates: Collection[str]) -> str:
    close = difflib.get_close_matches(word, sorted(candidates), 1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _keys(model: type[BaseModel], path: Path) -> set[str]:
    """The keys that a recipe may have at `path`.

    Of `methods`, the keys of all kinds of methods, unless the path names a kind.
    """
    models = [model]
    for part in path:
        inner = [
            nested
            for model in models
            if part in model.model_fields
            for nested in _models(model.model_fields[str(part)].annotation)
        ]
        of_kind = [
            model
            for model in models
            if "kind" in model.model_fields
            and part in get_args(model.model_fields["kind"].annotation)
        ]
        models = inner or of_kind or models
    return {key for model in models for key in model.model_fields}


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The pydantic models in a type annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)


def _assignment(problem: ErrorDetails, shown: Path, tree: Any, overrides: Sequence[str]) -> str:
    """The `--set` that caused an error, or nothing.

    It gave the value, or it created the mapping in which the error is.
    """
    path = shown[:-1] if problem["type"] == "missing" else shown
    dotted = ".".join(map(str, path))
    for assignment in reversed(overrides):
        key = assignment.partition("=")[0]
        created = key.startswith(f"{dotted}.") and not hasattr(_node(tree, path), "lc")
        if key == dotted or dotted.startswith(f"{key}.") or created:
            return f"--set {key}"
    return ""


def _node(tree: Any, path: Path) -> Any:
    for part in path:
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree
