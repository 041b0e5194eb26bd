"""Recipe files: errors with their position, overrides, the shipped recipes and the JSON schema."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import tarazu
from tarazu.errors import UserError
from tarazu.recipe.schema import json_schema, load
from tarazu.recipe.shipped import available

START = "task: chat\nmodel: x\ndata: {source: a}\n"  # of a chat recipe


@pytest.mark.parametrize("path", available().values(), ids=lambda p: p.stem)
def test_every_shipped_recipe_is_valid(path):
    assert load(path).methods


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            START + "budget: {tokens: 5}\nmethods: {lora: {rnak: 4}}\n",
            r"r.yaml:5:\d+: .*unknown key 'rnak'",
        ),
        (
            START + "budget:\n  tokens: -5\nmethods: {lora: {}}\n",
            "r.yaml:5:3",
        ),
        (
            START + "budget: {}\nmethods: {lora: {}}\n",
            "either `tokens` or `epochs`",
        ),
        ("task: caht\n", "did you mean 'chat'"),
        ("task: chat\ntask: chat\n", "duplicate key"),
        ("a: &x [1]\nb: *x\n", "aliases are not used"),
        ("task: [\n", "not valid YAML"),
        ("- 1\n", "a mapping"),
        (
            START + "budget: {tokens: 5}\nmethods: {'../evil': {kind: lora}}\n",
            "letters, digits",
        ),
        (
            START + "budget: {tokens: 5}\nmethods: {lroa: {}}\n",
            "lroa",
        ),
        (
            START + "budget: {tokens: 5}\nmethods: {lora: {}}\nsearch: {tokens: 5}\n",
            "nothing to search",
        ),
    ],
)
def test_an_error_has_its_position(tmp_path, text, message):
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        load(tmp_path / "r.yaml")


def test_overrides_and_scientific_numbers(tmp_path):
    demo = available()["demo"]
    recipe = load(demo, ["budget.tokens=123", "methods.lora.learning_rate=1e-4", "seeds=[3, 4]"])
    assert (
        recipe.budget.tokens == 123
        and recipe.methods["lora"].learning_rate == 1e-4
        and recipe.seeds == [3, 4]
    )
    with pytest.raises(UserError, match="key.path=value"):
        load(demo, ["nonsense"])


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        (
            "budget.tokns=5",
            r"--set budget.tokns: budget.tokns: unknown key 'tokns'; did you mean 'tokens'",
        ),
        ("budjet.tokens=5", r"--set budjet.tokens: budjet: .*did you mean 'budget'"),
        ("methods.lora.rnk=5", r": methods.lora.rnk: .*did you mean 'rank'"),
        (
            "methods.lorra.rank=5",
            r"--set methods.lorra.rank: methods.lorra: .*: one of base, .*; did you mean 'lora'",
        ),
        ("budget.tokens=many", "--set budget.tokens: "),
        (
            "budget.tokens=۴٬۰۰۰",
            "budget.tokens: a number in a recipe has the digits 0 to 9: write 4000",
        ),
        ("methods.lora.learning_rate=۰٫۰۱", "write 0.01"),
        ("search.extend_range=false", "--set search.extend_range: search.tokens: Field required"),
        ("budget.epochs=1", r"demo.yaml:\d+:1: budget: give either"),
    ],
)
def test_a_wrong_override_names_its_option_and_suggests_a_key(assignment, message):
    with pytest.raises(UserError, match=message):
        load(available()["demo"], [assignment])


def test_the_published_schema_is_current():
    published = Path(tarazu.__file__).parents[2] / "docs" / "recipe.schema.json"
    assert json.loads(published.read_text()) == json.loads(json_schema()), (
        "run: tarazu schema > docs/recipe.schema.json"
    )
