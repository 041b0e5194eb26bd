"""The recipes that tarazu ships."""

from __future__ import annotations

from pathlib import Path

import tarazu
from tarazu.errors import UserError

FOLDERS = (
    Path(tarazu.__file__).parent / "recipes",
    Path(tarazu.__file__).parents[2] / "recipes",
)  # installed, or a checkout
SCHEMA = "../docs/recipe.schema.json"  # what the first line of a shipped recipe names


def available() -> dict[str, Path]:
    """Name -> path of every shipped recipe."""
    return {path.stem: path for folder in FOLDERS for path in sorted(folder.glob("*.yaml"))}


def listing() -> str:
    """One line per recipe: its name, and the first comment in it."""
    found = available()
    width = max(map(len, found), default=0)
    return "\n".join(f"{name:{width}}  {_first_comment(path)}" for name, path in found.items())


def copy(name: str, to: Path) -> Path:
    """Copies a recipe into a folder. Raises `UserError` for an unknown name or an existing file."""
    found = available()
    if name not in found:
        raise UserError(f"no shipped recipe is called {name!r}", hint=f"one of: {', '.join(found)}")
    target = to / f"{name}.yaml"
    if target.exists():
        raise UserError("this file exists already", location=str(target), hint="move it away first")
    text = found[name].read_text(encoding="utf-8")
    if (
        SCHEMA in text and not (to / SCHEMA).exists()
    ):  # an editor would complain of a schema that is not there
        text = text.partition("\n")[2]
    target.write_text(text, encoding="utf-8")
    return target


def _first_comment(path: Path) -> str:
    lines = (
        line.lstrip("# ").strip()
        for line in path.read_text(encoding="utf-8").splitlines()
        if line.startswith("#")
    )
    return next(
        (line for line in lines if line and not line.startswith("yaml-language-server")), ""
    )
