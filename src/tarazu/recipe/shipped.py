"""The recipes that tarazu ships."""

from __future__ import annotations

from pathlib import Path

import tarazu
from tarazu.errors import UserError

PACKAGE = Path(tarazu.__file__).parent
FOLDERS = (PACKAGE / "recipes", PACKAGE.parents[1] / "recipes")  # installed, or a checkout
SCHEMA = "../docs/recipe.schema.json"  # the schema that a shipped recipe's first line names


def available() -> dict[str, Path]:
    """The path of every shipped recipe, by name."""
    return {path.stem: path for folder in FOLDERS for path in sorted(folder.glob("*.yaml"))}


def listing() -> str:
    """One line for each recipe: its name and its first comment."""
    recipes = available()
    width = max(map(len, recipes), default=0)
    return "\n".join(f"{name:{width}}  {_first_comment(path)}" for name, path in recipes.items())


def copy(name: str, to: Path) -> Path:
    """Copy a shipped recipe into a folder.

    Returns:
        The copy.

    Raises:
        UserError: there is no such recipe, or the file exists already.
    """
    recipes = available()
    if name not in recipes:
        hint = f"one of: {', '.join(recipes)}"
        raise UserError(f"no shipped recipe is called {name!r}", hint=hint)
    target = to / f"{name}.yaml"
    if target.exists():
        raise UserError("this file exists already", location=str(target), hint="move it away first")
    text = recipes[name].read_text(encoding="utf-8")
    if SCHEMA in text and not (to / SCHEMA).exists():
        # Drop the line: editors would report that the schema is missing.
        text = text.partition("\n")[2]
    target.write_text(text, encoding="utf-8")
    return target


def _first_comment(path: Path) -> str:
    lines = path.read_text(encoding="utf-8").splitlines()
    comments = (line.lstrip("# ").strip() for line in lines if line.startswith("#"))
    texts = (text for text in comments if text and not text.startswith("yaml-language-server"))
    return next(texts, "")
