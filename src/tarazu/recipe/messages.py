"""What is wrong with a recipe, in words: where it stands, which key it is, and which key was probably meant."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

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
"""Keys of version 0.1 and their names since 0.2. An old key is an error that names the new one."""

RENAMED_VALUES = {("memory", "small"): "low", ("source", "drawn"): "synthetic"}
"""Values of version 0.1, by key, and their names since 0.2."""


def locate(tree: Any, path: tuple, where: str) -> str:
    """file:line:column of the deepest part of `path` that stands in the file."""
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
        except (KeyError, TypeError, AttributeError):  # a key that --set added has no mark
            break
    return f"{where}:{line + 1}:{column + 1}"


def explain(
    error: ValidationError, model: type[BaseModel], tree: Any, where: str, overrides: list[str] = ()
) -> str:
    """All complaints about the recipe in `tree`, one a line; `overrides` are the `a.b=c` that changed the file at `where`."""
    lines = []
    for problem in error.errors():
        path = problem["loc"]
        shown = (
            path[:2] + path[3:] if path[0:1] == ("methods",) else path
        )  # after an arm's name comes its kind
        source = _assignment(problem, shown, tree, overrides) or locate(tree, path, where)
        lines.append(f"{source}: {'.'.join(map(str, shown))}: {_message(problem, model)}")
    return "the recipe cannot be used:\n  " + "\n  ".join(lines)


def _message(problem: Any, model: type[BaseModel]) -> str:
    path = problem["loc"]
    if problem["type"] == "extra_forbidden":
        keys = _keys(model, path[:-1])
        if (new := RENAMED_KEYS.get(path[-1])) in keys:
            return f"{path[-1]!r} has been renamed to {new!r} in version 0.2"
        return f"unknown key {path[-1]!r}{_suggestion(path[-1], keys)}"
    if problem["type"] == "literal_error" and (path[-1], problem["input"]) in RENAMED_VALUES:
        return renamed_value(path[-1], problem["input"])
    if problem["type"] == "union_tag_invalid":
        tag, kinds = problem["ctx"]["tag"], problem["ctx"]["expected_tags"].replace("'", "")
        return f"no kind of method is called {tag!r}: one of {kinds}{_suggestion(tag, kinds.split(', '))}"
    if problem["type"] in ("int_parsing", "float_parsing") and (
        plain := _with_latin_digits(problem["input"])
    ):
        return f"a number of a recipe has the digits 0 to 9: write {plain}"
    return problem["msg"].removeprefix("Value error, ")


def renamed_value(key: str, value: str) -> str:
    """The message for a value of version 0.1 that has another name now."""
    return f"{value!r} has been renamed to {RENAMED_VALUES[key, value]!r} in version 0.2"


def _with_latin_digits(text: str) -> str:
    """A number that was written in Persian, Arabic or other digits, in those that YAML reads; nothing for other text."""
    plain = (
        "".join(str(unicodedata.decimal(letter, letter)) for letter in text.strip())
        .replace("٬", "")
        .replace("٫", ".")
    )
    return plain if plain != text.strip() and re.fullmatch(r"[+-]?[\d_]+(\.\d*)?", plain) else ""


def _suggestion(word: Any, known: Any) -> str:
    near = difflib.get_close_matches(str(word), sorted(known), 1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _keys(model: type[BaseModel], path: tuple) -> set[str]:
    """The keys that may stand at `path`; of methods, those of every kind unless the path names one."""
    models = [model]
    for part in path:
        inner = [
            found
            for one in models
            if part in one.model_fields
            for found in _models(one.model_fields[part].annotation)
        ]
        kind = [
            one
            for one in models
            if "kind" in one.model_fields and part in get_args(one.model_fields["kind"].annotation)
        ]
        models = inner or kind or models
    return {key for one in models for key in one.model_fields}


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)


def _assignment(problem: Any, shown: tuple, tree: Any, overrides: list[str]) -> str:
    """The `--set` that a complaint is about, or nothing: it gave the value, or made the mapping that holds it."""
    at = shown[:-1] if problem["type"] == "missing" else shown
    dotted = ".".join(map(str, at))
    for key in reversed([assignment.partition("=")[0] for assignment in overrides]):
        made = key.startswith(f"{dotted}.") and not hasattr(_node(tree, at), "lc")
        if key == dotted or dotted.startswith(f"{key}.") or made:
            return f"--set {key}"
    return ""


def _node(tree: Any, path: tuple) -> Any:
    for part in path:
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree
