"""Render the page: templates, one style sheet and one script, under a content security policy."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
from markupsafe import Markup

from tarazu.report.render.bilingual import number, translate, visible

REPORT = Path(__file__).parents[1]
# The start of an element whose attributes are all single words.
_WORD_ATTRIBUTES = re.compile('<(?:span|tspan|bdi|code)(?: (?:class|lang|dir)="[a-z]+")+(?=[ >])')


def render(template: str, **view: Any) -> str:
    """The page as one HTML text that needs no network.

    Args:
        template: a file of `templates/`.
        view: what it shows. A value is escaped unless it is Markup, which only this package makes.
    """
    style, script = _asset("report.css"), _asset("charts.js") + _asset("report.js")
    page = (
        _environment()
        .get_template(template)
        .render(style=Markup(style), script=Markup(script), policy=policy(style, script), **view)
    )
    # Lone surrogates cannot be written as UTF-8.
    return page.encode("utf-8", "replace").decode("utf-8")


@lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    """Templates with escaping, and with the functions that they call."""
    loader = jinja2.FileSystemLoader(REPORT / "templates")
    environment = jinja2.Environment(
        loader=loader,
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"translate": translate, "num": number, "file_link": file_link}
    return environment


def compact(page: str) -> str:
    """The page without quotes around single words in its commonest tags: a tenth smaller."""
    return _WORD_ATTRIBUTES.sub(lambda tag: tag.group().replace('"', ""), page)


def policy(style: str, script: str) -> str:
    """The content security policy: this style, this script and images inside the file."""
    sources = f"script-src '{_hash(script)}'; style-src '{_hash(style)}'; img-src data:"
    return f"default-src 'none'; {sources}; base-uri 'none'; form-action 'none'"


def file_link(file: str) -> str:
    """A relative link to a file of the run folder; `./` keeps its name from being a scheme."""
    return "./" + quote(visible(file))


def _hash(text: str) -> str:
    """The hash of a style or script as the policy names it."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode()


def _asset(name: str) -> str:
    """A file of `assets/`, which must not end the element that it is put into."""
    text = (REPORT / "assets" / name).read_text(encoding="utf-8")
    if "</s" in text.lower():
        raise ValueError(f"{name} contains an end tag")
    return text
