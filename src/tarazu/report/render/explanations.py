"""Explanations of one idea each, from Markdown files in both languages, with HTML switched off."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from markdown_it import MarkdownIt
from markupsafe import Markup

from tarazu.report.render.bilingual import LANGUAGES, Bilingual

FOLDER = Path(__file__).parents[1] / "explanations"
# The explanation of each kind of method.
OF_KIND = {
    "prompt_tuning": "prompt-tuning",
    "prefix_tuning": "prefix-tuning",
    "p_tuning": "p-tuning",
    "lora": "lora",
    "rslora": "rslora",
    "dora": "dora",
    "loha": "loha",
    "layers": "layers",
    "show_and_tell": "show-and-tell",
    "show_attend_tell": "show-attend-tell",
    "transformer": "cnn-transformer",
}


@dataclass(frozen=True)
class Explanation:
    """An idea: its title and its text in both languages."""

    name: str
    title: Bilingual
    body: Bilingual


def explain(*names: str) -> list[Explanation]:
    """The named explanations in the order given.

    Raises:
        FileNotFoundError: there is no such explanation.
    """
    return [_load(name) for name in names]


def explain_kind(kind: str) -> list[Explanation]:
    """The explanation of a kind of method; none for a kind that has no page."""
    return explain(OF_KIND[kind]) if kind in OF_KIND else []


@cache
def _load(name: str) -> Explanation:
    """Read an explanation in both languages."""
    titles, bodies = zip(
        *(_read(FOLDER / language / f"{name}.md") for language in LANGUAGES), strict=True
    )
    return Explanation(name, Bilingual(*titles), Bilingual(*bodies))


def _read(path: Path) -> tuple[Markup, Markup]:
    """The title, which is the first line, and the body of a file, as HTML."""
    first, _, rest = path.read_text(encoding="utf-8").partition("\n")
    renderer = MarkdownIt("commonmark", {"html": False}).enable("table")
    body = (
        renderer.render(rest)
        .replace("<pre>", '<pre dir="ltr" tabindex="0">')
        .replace("<code>", '<code dir="ltr">')
    )
    return Markup(renderer.renderInline(first.removeprefix("# ").strip())), Markup(body)
