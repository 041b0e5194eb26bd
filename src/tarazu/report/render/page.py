"""The page: templates, one style sheet and one script, sealed by a content policy that lets nothing else run."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote

import jinja2
from markupsafe import Markup

from tarazu.report.render.bilingual import number, translate, visible

HERE = Path(__file__).parents[1]


def render(template: str, **view) -> str:
    """The page as one offline HTML text. Every value is escaped unless it is Markup made in this package."""
    style, script = _asset("report.css"), _asset("charts.js") + _asset("report.js")
    page = (
        _environment()
        .get_template(template)
        .render(style=Markup(style), script=Markup(script), policy=policy(style, script), **view)
    )
    return page.encode("utf-8", "replace").decode("utf-8")


_COMMON = re.compile('<(?:span|tspan|bdi|code)(?: (?:class|lang|dir)="[a-z]+")+(?=[ >])')


@lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    loader = jinja2.FileSystemLoader(HERE / "templates")
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
    """The page with its commonest tags in HTML's short form, which needs no quotes around a word: a tenth of its size."""
    return _COMMON.sub(lambda found: found.group().replace('"', ""), page)


def policy(style: str, script: str) -> str:
    """Nothing from anywhere: only this very style, this very script, and pictures inside the file."""
    sources = f"script-src '{_hash(script)}'; style-src '{_hash(style)}'; img-src data:"
    return f"default-src 'none'; {sources}; base-uri 'none'; form-action 'none'"


def file_link(file: str) -> str:
    """A relative link to a file of the folder; `./` before it, so that no name can be a scheme."""
    return "./" + quote(visible(file))


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode()


def _asset(name: str) -> str:
    text = (HERE / "assets" / name).read_text(encoding="utf-8")
    if "</s" in text.lower():
        raise ValueError(f"{name} would close its own element")
    return text
