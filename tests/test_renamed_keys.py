"""Keys of version 0.1: each is an error that gives its position and names the new key."""

from __future__ import annotations

import re

import pytest

from tarazu.errors import UserError
from tarazu.recipe.messages import RENAMED_KEYS, RENAMED_VALUES
from tarazu.recipe.schema import load
from tarazu.recipe.shipped import available

CHAT = """\
task: chat
model: a-model
data: {source: rows.jsonl}
budget: {tokens: 1000}
methods:
  base: {}
"""
CAPTIONS = """\
task: captions
data: {source: synthetic}
budget: {epochs: 1}
methods:
  show_and_tell: {}
"""

# Old key -> recipes that have it: the recipe, the key's parent in dotted form, and a value.
PLACES = {
    "average": [(CHAT, "methods.lora", "0.9"), (CAPTIONS, "methods.transformer", "0.9")],
    "beam_stop": [(CAPTIONS, "", "ahead")],
    "clip": [(CHAT, "budget", "1.0")],
    "crop": [(CAPTIONS, "data", "0.5")],
    "during_training": [(CHAT, "generation", "1")],
    "first": [(CHAT, "methods.layers", "2")],
    "head": [(CHAT, "methods.layers", "true")],
    "hidden": [(CAPTIONS, "methods.show_attend_tell", "64")],
    "last": [(CHAT, "methods.layers", "2")],
    "layers": [(CAPTIONS, "methods.transformer", "2"), (CAPTIONS, "methods.show_and_tell", "2")],
    "mirrored": [(CAPTIONS, "methods.ensemble", "true")],
    "near": [(CAPTIONS, "data", "24")],
    "of": [(CAPTIONS, "methods.ensemble", "[a, b]")],
    "share": [(CAPTIONS, "methods.transformer.self_critical", "0.5")],
    "start": [(CHAT, "methods.prompt_tuning", "text")],
    "test_rows": [(CHAT, "generation", "8")],
    "text": [(CHAT, "methods.prompt_tuning", "hello"), (CHAT, "methods.prefix_tuning", "hello")],
    "tie_words": [(CAPTIONS, "methods.show_and_tell", "true")],
    "together": [(CAPTIONS, "data", "5"), (CAPTIONS, "methods.transformer", "1")],
    "views": [(CAPTIONS, "data", "5")],
    "virtual_tokens": [(CHAT, "methods.prompt_tuning", "8"), (CHAT, "search", "[8]")],
    "warmup": [(CHAT, "budget", "0.1")],
    "watch": [(CAPTIONS, "budget", "cider")],
    "widen": [(CHAT, "search", "true")],
}
CASES = [(key, *place) for key, places in PLACES.items() for place in places]


def with_line(recipe: str, parent: str, key: str, value: str) -> tuple[str, int, int]:
    """The recipe with the key in block style, and the key's line and column."""
    lines, path, indent = recipe.splitlines(), parent.split(".") if parent else [], ""
    position = len(lines)
    for part in path:
        header = re.compile(rf"^{indent}{part}:")
        found = [i for i, line in enumerate(lines) if header.match(line)]
        if found:
            position = found[0] + 1
            flow = re.match(rf"^{indent}{part}: \{{(.*)\}}$", lines[found[0]])
            if flow:  # write the flow mapping as a block, to add a line to it
                inner = [f"{indent}  {item}" for item in flow[1].split(", ") if item]
                lines[found[0] : found[0] + 1] = [f"{indent}{part}:", *inner]
        else:
            new_line = f"{indent}{part}:"
            lines.insert(position, new_line)
            position += 1
        indent += "  "
    lines.insert(position, f"{indent}{key}: {value}")
    return "\n".join(lines) + "\n", position + 1, len(indent) + 1


def test_every_renamed_key_is_tested():
    assert set(PLACES) == set(RENAMED_KEYS)


@pytest.mark.parametrize(("key", "recipe", "parent", "value"), CASES)
def test_an_old_key_names_the_new_one_and_its_position(tmp_path, key, recipe, parent, value):
    text, line, column = with_line(recipe, parent, key, value)
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load(path)
    dotted = f"{parent}.{key}" if parent else key
    new = RENAMED_KEYS[key]
    expected = (
        f"{path}:{line}:{column}: {dotted}: {key!r} has been renamed to {new!r} in version 0.2"
    )
    assert expected in str(caught.value)


@pytest.mark.parametrize("key", sorted(RENAMED_KEYS))
def test_the_new_key_is_known(tmp_path, key):
    recipe, parent, value = PLACES[key][0]
    text, _, _ = with_line(recipe, parent, RENAMED_KEYS[key], value)
    (tmp_path / "recipe.yaml").write_text(text)
    try:
        load(tmp_path / "recipe.yaml")
    except UserError as error:  # other keys may be missing, but this one is known
        assert "unknown key" not in str(error) and "renamed" not in str(error)


def test_an_old_key_of_an_override_names_the_option():
    with pytest.raises(UserError, match="--set budget.clip: .*'max_grad_norm'"):
        load(available()["demo"], ["budget.clip=1"])


@pytest.mark.parametrize(
    ("key", "value", "recipe", "line"),
    [
        ("memory", "small", CHAT + "memory: small\n", "7:1: memory: "),
        ("source", "drawn", CAPTIONS.replace("synthetic", "drawn"), "2:8: data.source: "),
    ],
)
def test_an_old_value_names_the_new_one(tmp_path, key, value, recipe, line):
    (tmp_path / "recipe.yaml").write_text(recipe)
    with pytest.raises(UserError) as caught:
        load(tmp_path / "recipe.yaml")
    new = RENAMED_VALUES[key, value]
    expected = f"recipe.yaml:{line}{value!r} has been renamed to {new!r} in version 0.2"
    assert expected in str(caught.value)
