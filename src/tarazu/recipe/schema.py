"""A recipe: one YAML file that names a model, data, a budget and some methods.

`load` reads and checks it; every complaint names file, line and column. What a task adds (its data and methods) is in
that task's `settings.py`, a subclass of `Recipe`.
"""

from __future__ import annotations

import difflib
import io
import json
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.tokens import AliasToken

from tarazu import tasks
from tarazu.errors import UserError
from tarazu.recipe.messages import explain, locate


class StrictModel(BaseModel):
    """Settings in which an unknown key is an error, so that a misspelt one is never silently ignored."""

    model_config = ConfigDict(extra="forbid", validate_default=True)


class Method(StrictModel):
    """One way of training. A subclass is one file: its settings, with their defaults, and one verb."""

    kind: str
    learning_rate: PositiveFloat = 1e-3
    weight_decay: NonNegativeFloat = 0.0
    optimizer: Literal["adamw", "sgd", "rmsprop"] = "adamw"
    batch_rows: PositiveInt | None = Field(
        None, description="rows per optimizer step, if not the budget's"
    )
    ema_decay: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="0.999: the mean of the weights over the last 1,000 steps is validated, kept and evaluated; 0: the weights themselves",
    )


class Budget(StrictModel):
    """How much every method may train: the same for all.

    `tokens` counts the real tokens of the rows (no padding, no virtual tokens); `epochs` counts passes over the rows.
    """

    tokens: PositiveInt | None = None
    epochs: PositiveFloat | None = None
    batch_rows: PositiveInt = Field(16, description="rows per optimizer step")
    micro_batch_tokens: PositiveInt = Field(
        8192, description="most tokens in one forward pass; halved when memory runs out"
    )
    evaluate_every: PositiveInt | None = Field(
        None, description="tokens between validations; default: every epoch or tenth"
    )
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_ratio: float = Field(
        0.05, ge=0, le=1, description="share of the budget in which the learning rate climbs"
    )
    max_grad_norm: PositiveFloat = Field(1.0, description="largest gradient norm")
    precision: Literal["auto", "bfloat16", "float32"] = "auto"
    gradient_checkpointing: bool = False
    keep: Literal["last", "best"] = Field(
        "last", description="which weights are evaluated: the last or the best validated"
    )
    monitor: str = Field(
        "loss", description="the validation figure that `keep: best` and `patience` follow"
    )
    patience: PositiveInt | None = Field(
        None, description="stop after this many validations without a better figure"
    )

    @model_validator(mode="after")
    def _one_of_two(self) -> Budget:
        if (self.tokens is None) == (self.epochs is None):
            raise ValueError("give either `tokens` or `epochs`")
        return self


class Search(StrictModel):
    """A search of each method's settings before its runs: the same tokens for every method, judged on validation loss."""

    tokens: PositiveInt = Field(
        description="training tokens that each method's search of these lists may use in all"
    )
    extend_range: bool = Field(
        True,
        description="where the best rate is at an edge of its list, try up to two beyond it (x3 each), each for at most as many tokens as the winner had",
    )
    learning_rate: list[PositiveFloat] = []
    rank: list[PositiveInt] = []
    num_virtual_tokens: list[PositiveInt] = []

    def grid(self) -> dict[str, list]:
        """The settings that are searched, and their values."""
        return {
            name: values
            for name in ("learning_rate", "rank", "num_virtual_tokens")
            if (values := getattr(self, name))
        }

    @model_validator(mode="after")
    def _something(self) -> Search:
        if not self.grid():
            raise ValueError(
                "nothing to search: give learning_rate, rank or num_virtual_tokens a list"
            )
        return self


class Recipe(StrictModel):
    """What every task's recipe has. `methods` maps the name of an arm to its settings; `kind` defaults to the name."""

    task: str
    budget: Budget
    methods: dict[str, Any]
    search: Search | None = None
    seeds: list[int] = Field([0], min_length=1)
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    language: Literal["auto", "fa", "en"] = Field(
        "auto", description="the language that the report opens in"
    )
    prefer: Literal["quality", "memory", "speed", "size"] = "quality"

    @model_validator(mode="before")
    @classmethod
    def _kinds(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("methods"), dict):
            arms = {
                k: dict(v or {})
                for k, v in values["methods"].items()
                if v is None or isinstance(v, dict)
            }
            for name, settings in arms.items():
                settings.setdefault("kind", name)
            values = {**values, "methods": {**values["methods"], **arms}}
        return values

    def replace_method(self, name: str, method: Method) -> Self:
        """The same recipe with other settings for one of its methods."""
        return self.model_copy(update={"methods": {**self.methods, name: method}})

    @model_validator(mode="after")
    def _names(self) -> Recipe:
        if not self.methods:
            raise ValueError("no methods: name at least one")
        for name in self.methods:
            if not name.replace("_", "").replace("-", "").isalnum() or not name.isascii():
                raise ValueError(
                    f"method name {name!r}: use letters, digits, - and _ (it becomes a folder)"
                )
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError("a seed is there twice")
        return self


def load(path: str | Path, overrides: list[str] = ()) -> Recipe:
    """Reads the recipe at `path` with `a.b=c` overrides. Raises `UserError` with file:line:column."""
    path = Path(path)
    text = _read(path)
    tree = parse_yaml(text, str(path))
    if not isinstance(tree, dict):
        raise UserError(
            "a recipe is a mapping of keys to values",
            location=f"{path}:1:1",
            hint="start from `tarazu new`",
        )
    for assignment in overrides:
        _override(tree, assignment)
    return validate(tree, str(path), overrides)


def validate(tree: dict, where: str, overrides: list[str] = ()) -> Recipe:
    """The recipe in a parsed tree, through the class of its task; `overrides` are those that are in it already."""
    name = tree.get("task")
    if name not in tasks.names():
        near = difflib.get_close_matches(str(name), tasks.names(), 1)
        hint = f"did you mean {near[0]!r}?" if near else f"one of: {', '.join(tasks.names())}"
        raise UserError(
            f"unknown task {name!r}", location=locate(tree, ("task",), where), hint=hint
        )
    try:
        return tasks.recipe_class(name).model_validate(_plain(tree))
    except ValidationError as error:
        raise UserError(explain(error, tasks.recipe_class(name), tree, where, overrides)) from None


def parse_yaml(text: str, where: str) -> Any:
    """YAML 1.2 with positions; duplicate keys and aliases (a known bomb) are refused."""
    try:
        for token in YAML(typ="rt").scan(text):
            if isinstance(token, AliasToken):
                mark = token.start_mark
                raise UserError(
                    "aliases are not used in recipes",
                    location=f"{where}:{mark.line + 1}:{mark.column + 1}",
                    hint="write the value out",
                )
        return YAML(typ="rt").load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{where}:{mark.line + 1}:{mark.column + 1}" if mark else where
        raise UserError(
            f"not valid YAML: {error.problem or error.context}",
            location=place,
            hint="mend that place: spaces for indents, a space after each colon",
        ) from None
    except YAMLError as error:
        raise UserError(f"not valid YAML: {str(error).splitlines()[0]}", location=where) from None


def dump_yaml(recipe: Recipe) -> str:
    """The recipe with every default written out."""
    out = io.StringIO()
    yaml = YAML()
    yaml.width = 120
    yaml.dump(recipe.model_dump(mode="json"), out)
    return out.getvalue()


def json_schema() -> str:
    """The JSON schema of all recipes, for editors (docs/recipe.schema.json)."""
    schemas = [tasks.recipe_class(name).model_json_schema() for name in tasks.names()]
    return json.dumps(
        {"$schema": "https://json-schema.org/draft/2020-12/schema", "anyOf": schemas},
        indent=1,
        ensure_ascii=False,
    )


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(
            "no such recipe",
            location=str(path),
            hint="`tarazu new` lists the shipped recipes, `tarazu new NAME` copies one here",
        ) from None
    except IsADirectoryError:
        raise UserError(
            "a folder, not a recipe", location=str(path), hint="give the YAML file"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"the recipe cannot be read: {error}",
            location=str(path),
            hint="give a text file in UTF-8 that you may read",
        ) from None


def _override(tree: dict, assignment: str) -> None:
    key, equals, value = assignment.partition("=")
    if not equals or not key:
        raise UserError(f"this option wants key.path=value, not {assignment!r}", location="--set")
    *parents, last = key.split(".")
    for part in parents:
        if tree.get(part) is None:
            tree[part] = {}
        tree = tree[part]
        if not isinstance(tree, dict):
            raise UserError(f"{part!r} in {key!r} holds a value, not keys", location="--set")
    tree[last] = parse_yaml(value, f"--set {key}")


def _plain(node: Any) -> Any:
    if isinstance(node, dict):
        return {str(k): _plain(v) for k, v in node.items()}
    return [_plain(v) for v in node] if isinstance(node, list) else node
