"""The rules of docs/design.md that a machine can hold."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import tarazu

ROOT = Path(tarazu.__file__).parent
FORBIDDEN = {
    "engine": {"chat", "captions", "report"},
    "chat": {"captions", "report"},
    "captions": {"chat", "report"},
    "report": {"chat", "captions", "engine", "study"},
}
PIPELINES = {"trl", "lightning", "pytorch_lightning", "unsloth", "llamafactory", "axolotl"}
FILES = sorted(ROOT.rglob("*.py"))


def imports(path: Path, top_only: bool = False) -> set[str]:
    """Dotted names that a file imports (at its top level only, if asked; not under TYPE_CHECKING)."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_only else ast.walk(tree)
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_file_keeps_the_rules(path):
    part = path.relative_to(ROOT).parts[0]
    names = imports(path)
    for other in FORBIDDEN.get(part, ()):
        assert not any(
            name == f"tarazu.{other}" or name.startswith(f"tarazu.{other}.") for name in names
        ), f"{part} imports {other}"
    if part == "report":
        assert not any(name.split(".")[0] in ("torch", "transformers", "peft") for name in names)
    assert not {name.split(".")[0] for name in names} & PIPELINES
    assert not any(name.endswith(".Trainer") for name in names)
    assert (
        "pickle" not in names or path.name == "crew.py"
    )  # there from a process to its own children
    text = path.read_text(encoding="utf-8")
    assert "torch.load(" not in text and "trust_remote_code=True" not in text
    assert text.count("\n") <= 350, "more than one idea?"
    assert ast.get_docstring(ast.parse(text)) or not text.strip(), "a file says which idea it has"


def test_the_design_names_every_file():
    """Those of a folder that the design names as one (methods/, decoders/, sections/) are known by the folder."""
    design = (ROOT.parents[1] / "docs" / "design.md").read_text(encoding="utf-8")
    layout = dict(
        re.findall(r"^  (engine|chat|captions|report)/(.*?)(?=^  \w+/|^\w)", design, re.S | re.M)
    )
    layout["."] = design.split("src/tarazu/", 1)[1].split("  engine/", 1)[0]
    for path in FILES:
        folder, name = str(path.parent.relative_to(ROOT)), path.name
        if not name.startswith("__"):
            named = (
                f"{path.parent.name}/" in layout[folder.split("/")[0]]
                if "/" in folder
                else name in layout[folder].split()
            )
            assert named, f"{folder}/{name} is not in docs/design.md"


@pytest.mark.parametrize(
    "name",
    [
        "cli.py",
        "recipe.py",
        "errors.py",
        "recipes.py",
        "table.py",
        "run_folder.py",
        "chat/settings.py",
        "captions/settings.py",
    ],
)
def test_what_help_needs_is_light(name):
    heavy = {"torch", "transformers", "peft", "datasets", "altair", "matplotlib"}
    assert not {n.split(".")[0] for n in imports(ROOT / name, top_only=True)} & heavy
