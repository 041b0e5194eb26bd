"""Rules of the architecture: allowed imports, no import circle, and what no file may do."""

from __future__ import annotations

import ast
import itertools
import re
from functools import cache
from pathlib import Path

import pytest

import tarazu

ROOT = Path(tarazu.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
TASKS = ("chat", "captions")
PIPELINES = {"trl", "lightning", "pytorch_lightning", "unsloth", "llamafactory", "axolotl"}
HEAVY = {"torch", "transformers", "peft", "datasets", "altair", "matplotlib"}

# Package -> packages of tarazu that it may import besides itself.
ALLOWED = {
    "report": {"storage", "errors", "tasks"},
    "storage": {"errors", "recipe"},
    "recipe": {"errors", "tasks"},
    "engine": {"errors", "recipe", "storage"},
    "tasks": set(),
    "errors": set(),
}
# Subpackage -> sibling packages that it may import.
BELOW = {
    "chat/data": set(),
    "captions/data": set(),
    "captions/metrics": {"data"},
    "report/analysis": set(),
    "report/render": {"analysis"},
}


def name_of(path: Path) -> str:
    """The dotted module name of a file."""
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in FILES}


@cache
def imports(path: Path, top_only: bool = False) -> frozenset[str]:
    """Dotted names that a file imports: anywhere, or only at its top level."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names: set[str] = set()
    for node in tree.body if top_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return frozenset(names)


def imported_modules(path: Path) -> set[str]:
    """Modules of tarazu that a file imports, also in functions and under TYPE_CHECKING."""
    return {name for name in imports(path) if name in MODULES and name != name_of(path)}


def package_of(module: str) -> str:
    """The top-level package or module of tarazu that holds a module."""
    return module.split(".")[1] if "." in module else ""


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_only_what_it_may(path: Path) -> None:
    package = package_of(name_of(path))
    imported = {package_of(module) for module in imported_modules(path)} - {package, ""}
    if package in ALLOWED:
        assert imported <= ALLOWED[package], f"{package} imports {imported - ALLOWED[package]}"
    if package in TASKS:
        assert not imported & ({*TASKS, "report", "commands"} - {package})
    folder = str(path.parent.relative_to(ROOT))
    for below, allowed in BELOW.items():
        if folder == below or folder.startswith(below + "/"):
            top, own = below.split("/")
            siblings = {
                module.split(".")[2]
                for module in imported_modules(path)
                if module.startswith(f"tarazu.{top}.")
                and (ROOT / top / module.split(".")[2]).is_dir()
            }
            assert siblings - {own} <= allowed, f"{below} imports {siblings - {own} - allowed}"
    if package in ("report", "storage", "recipe"):
        top = {name.split(".")[0] for name in imports(path, top_only=True)}
        assert not top & {"torch", "transformers", "peft"} or path.name == "provenance.py"


def test_there_is_no_import_circle() -> None:
    """Strongly connected components of the import graph (Tarjan 1972) have one module each."""
    graph = {name: imported_modules(path) for name, path in MODULES.items()}
    index, low, stack, circles = {}, {}, [], []
    counter = itertools.count()

    def visit(node: str) -> None:
        index[node] = low[node] = next(counter)
        stack.append(node)
        for other in graph[node]:
            if other not in index:
                visit(other)
            if other in stack:
                low[node] = min(low[node], low[other])
        if low[node] == index[node]:
            members = [stack.pop()]
            while members[-1] != node:
                members.append(stack.pop())
            if len(members) > 1:
                circles.append(sorted(members))

    for name in graph:
        if name not in index:
            visit(name)
    assert not circles


def owner(path: Path) -> str:
    """The task that a file belongs to, or an empty text."""
    parts = path.relative_to(ROOT).parts
    return next((part for part in parts[:-1] if part in TASKS), "")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_the_registry_names_a_task(path: Path) -> None:
    if path.name == "tasks.py" or owner(path):
        return
    tree = ast.parse(path.read_text(encoding="utf-8"))
    strings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    assert not strings & set(TASKS)
    hits = [s for s in strings if isinstance(s, str) and re.match(r"tarazu\.(chat|captions)\.", s)]
    assert not hits
    assert path.name == "cli.py" or not {package_of(m) for m in imported_modules(path)} & set(TASKS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_does_nothing_that_is_ruled_out(path: Path) -> None:
    names, text = imports(path), path.read_text(encoding="utf-8")
    assert not {name.split(".")[0] for name in names} & PIPELINES
    assert not any(name.endswith(".Trainer") and "transformers" in name for name in names)
    assert "pickle" not in names and "trust_remote_code=True" not in text
    calls = re.findall(r"torch\.load\(([^)]*)\)", text)
    assert all("weights_only=True" in call for call in calls)
    assert not calls or path.name == "weights_file.py", "one file reads .pth"
    assert "import_module(f" not in text
    assert text.count("\n") <= 350, "more than one idea?"
    assert ast.get_docstring(ast.parse(text)) or not text.strip(), "a file says what it is"


@pytest.mark.parametrize(
    "name",
    [
        "cli.py",
        "tasks.py",
        "errors.py",
        "recipe/schema.py",
        "recipe/shipped.py",
        "commands/tables.py",
        "storage/run_folder.py",
        "storage/atomic_io.py",
        "chat/settings.py",
        "captions/settings.py",
    ],
)
def test_what_help_needs_is_light(name: str) -> None:
    top = {module.split(".")[0] for module in imports(ROOT / name, top_only=True)}
    assert not top & HEAVY
