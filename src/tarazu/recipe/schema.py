"""Recipes: the keys that all tasks share, and how a recipe file is read, checked and written.

A recipe is one YAML file that names a model, data, a budget and methods. A task adds its own keys
in a subclass of `Recipe`, in its `settings.py`. `messages.py` words the errors, each with file,
line and column.
"""

from __future__ import annotations

import difflib
import io
import json
from collections.abc import Sequence
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

NO_VALIDATION = 10**12  # a value of `evaluate_every` with which only the end of a run is validated


class StrictModel(BaseModel):
    """Settings in which an unknown key is an error, so that a misspelt key is never ignored."""

    model_config = ConfigDict(extra="forbid", validate_default=True)


class Method(StrictModel):
    """Settings of one method. Each kind of method is a subclass."""

    kind: str
    learning_rate: PositiveFloat = 1e-3
    weight_decay: NonNegativeFloat = 0.0
    optimizer: Literal["adamw", "sgd", "rmsprop"] = "adamw"
    batch_rows: PositiveInt | None = Field(
        None, description="rows per optimizer step; default: the budget's"
    )
    ema_decay: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="decay of an exponential moving average of the weights, which is then "
        "validated, saved and evaluated; 0.999 averages about 1,000 steps, 0 disables it",
    )


class Budget(StrictModel):
    """How long and how every method trains. All methods have the same budget.

    `tokens` counts tokens of the rows, without padding and virtual tokens. `epochs` counts passes
    over the rows.
    """

    tokens: PositiveInt | None = None
    epochs: PositiveFloat | None = None
    batch_rows: PositiveInt = Field(16, description="rows per optimizer step")
    micro_batch_tokens: PositiveInt = Field(
        8192, description="maximum tokens in one forward pass; halved when memory runs out"
    )
    evaluate_every: PositiveInt | None = Field(
        None, description="tokens between validations; default: an epoch, or a tenth of `tokens`"
    )
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_ratio: float = Field(
        0.05, ge=0, le=1, description="fraction of the budget in which the learning rate rises"
    )
    max_grad_norm: PositiveFloat = Field(1.0, description="maximum gradient norm")
    precision: Literal["auto", "bfloat16", "float32"] = "auto"
    gradient_checkpointing: bool = False
    keep: Literal["last", "best"] = Field(
        "last", description="which weights are evaluated: the last, or the best by validation"
    )
    monitor: str = Field(
        "loss", description="the validation metric that `keep: best` and `patience` use"
    )
    patience: PositiveInt | None = Field(
        None, description="stop after this many validations without improvement"
    )

    @model_validator(mode="after")
    def _one_of_two(self) -> Budget:
        if (self.tokens is None) == (self.epochs is None):
            raise ValueError("give either `tokens` or `epochs`")
        return self


class Search(StrictModel):
    """A search of each method's settings before its runs.

    Every method has the same number of tokens for its search. Validation loss decides.
    """

    tokens: PositiveInt = Field(description="training tokens of the whole search of one method")
    extend_range: bool = Field(
        True,
        description="if the best learning rate is at an edge of its list, try up to two rates "
        "beyond it (a factor of 3 each), each for at most as many tokens as the winner had",
    )
    learning_rate: list[PositiveFloat] = []
    rank: list[PositiveInt] = []
    num_virtual_tokens: list[PositiveInt] = []

    def grid(self) -> dict[str, list[Any]]:
        """Values to try, by setting; settings without a list are left out."""
        settings = ("learning_rate", "rank", "num_virtual_tokens")
        return {name: values for name in settings if (values := getattr(self, name))}

    @model_validator(mode="after")
    def _something(self) -> Search:
        if not self.grid():
            raise ValueError(
                "nothing to search: give learning_rate, rank or num_virtual_tokens a list"
            )
        return self


class Recipe(StrictModel):
    """Keys of every recipe.

    `methods` maps names to settings. The `kind` of a method defaults to its name.
    """

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
    def _default_kinds(cls, values: Any) -> Any:
        if not isinstance(values, dict) or not isinstance(values.get("methods"), dict):
            return values  # the fields' own checks report it
        methods = {
            name: {"kind": name, **(settings or {})}
            if settings is None or isinstance(settings, dict)
            else settings
            for name, settings in values["methods"].items()
        }
        return {**values, "methods": methods}

    def replace_method(self, name: str, method: Method) -> Self:
        """A copy of the recipe with other settings for one method."""
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
            raise ValueError("a seed occurs twice")
        return self


def load(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe.

    Args:
        path: the YAML file.
        overrides: `a.b=c`, changes of single keys.

    Raises:
        UserError: the file cannot be read, or the recipe is wrong.
    """
    path = Path(path)
    tree = parse_yaml(_read_text(path), str(path))
    if not isinstance(tree, dict):
        raise UserError(
            "a recipe is a mapping of keys to values",
            location=f"{path}:1:1",
            hint="start from `tarazu new`",
        )
    for assignment in overrides:
        _override(tree, assignment)
    return validate(tree, str(path), overrides)


def validate(tree: dict[str, Any], location: str, overrides: Sequence[str] = ()) -> Recipe:
    """Check a parsed recipe with the recipe class of its task.

    Args:
        tree: the parsed file.
        location: its name, for errors.
        overrides: the `a.b=c` that are in the tree already, for errors.

    Raises:
        UserError: the task is unknown, or a key or value is wrong.
    """
    name = tree.get("task")
    if name not in tasks.names():
        close = difflib.get_close_matches(str(name), tasks.names(), 1)
        hint = f"did you mean {close[0]!r}?" if close else f"one of: {', '.join(tasks.names())}"
        position = locate(tree, ("task",), location)
        raise UserError(f"unknown task {name!r}", location=position, hint=hint)
    recipe_class: type[Recipe] = tasks.recipe_class(name)
    try:
        return recipe_class.model_validate(_plain(tree))
    except ValidationError as error:
        raise UserError(explain(error, recipe_class, tree, location, overrides)) from None


def parse_yaml(text: str, location: str) -> Any:
    """Parse YAML 1.2 and keep the position of every key.

    Args:
        text: the content.
        location: its name, for errors.

    Raises:
        UserError: it is no YAML, has a key twice, or has an alias. Nested aliases can expand to
            gigabytes, and recipes need none.
    """
    try:
        for token in YAML(typ="rt").scan(text):
            if isinstance(token, AliasToken):
                raise UserError(
                    "aliases are not used in recipes",
                    location=_position(location, token.start_mark),
                    hint="write the value out",
                )
        return YAML(typ="rt").load(text)
    except MarkedYAMLError as error:
        raise UserError(
            f"not valid YAML: {error.problem or error.context}",
            location=_position(location, error.problem_mark or error.context_mark),
            hint="correct this line: spaces for indents, a space after each colon",
        ) from None
    except YAMLError as error:
        message = f"not valid YAML: {str(error).splitlines()[0]}"
        raise UserError(message, location=location) from None


def _position(location: str, mark: Any) -> str:
    return f"{location}:{mark.line + 1}:{mark.column + 1}" if mark else location


def dump_yaml(recipe: Recipe) -> str:
    """The recipe as YAML, with every default written out."""
    out = io.StringIO()
    yaml = YAML()
    yaml.width = 120
    yaml.dump(recipe.model_dump(mode="json"), out)
    return out.getvalue()


def json_schema() -> str:
    """The JSON schema of the recipes of all tasks, for editors."""
    schemas = [tasks.recipe_class(name).model_json_schema() for name in tasks.names()]
    dialect = "https://json-schema.org/draft/2020-12/schema"
    return json.dumps({"$schema": dialect, "anyOf": schemas}, indent=1, ensure_ascii=False)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        message = "no such recipe"
        hint = "`tarazu new` lists the shipped recipes, `tarazu new NAME` copies one here"
    except IsADirectoryError:
        message, hint = "a folder, not a recipe", "give the YAML file"
    except (OSError, UnicodeDecodeError) as error:
        message = f"the recipe cannot be read: {error}"
        hint = "give a text file in UTF-8 that you may read"
    raise UserError(message, location=str(path), hint=hint)


def _override(tree: dict[str, Any], assignment: str) -> None:
    """Set one key in a parsed recipe. Missing mappings on the way are created."""
    key, equals, value = assignment.partition("=")
    if not equals or not key:
        message = f"this option wants key.path=value, not {assignment!r}"
        raise UserError(message, location="--set")
    *parents, last = key.split(".")
    for part in parents:
        if tree.get(part) is None:
            tree[part] = {}
        tree = tree[part]
        if not isinstance(tree, dict):
            raise UserError(f"{part!r} in {key!r} holds a value, not keys", location="--set")
    tree[last] = parse_yaml(value, f"--set {key}")


def _plain(node: Any) -> Any:
    """A parsed tree as plain dicts and lists."""
    if isinstance(node, dict):
        return {str(key): _plain(value) for key, value in node.items()}
    return [_plain(value) for value in node] if isinstance(node, list) else node
