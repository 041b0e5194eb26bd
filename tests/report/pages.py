"""Parse the report's page as a browser would."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

from tarazu.report.build import build
from tarazu.report.render.bilingual import strings

VOID = {"meta", "input", "br", "wbr", "img", "link", "hr"}


class Page(HTMLParser):
    """The elements, ids, scripts and visible text of a page."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict]] = []
        self.open: list[str] = []  # tags and classes of the elements that are open
        self.classes: list[str | None] = []
        self.scripts: list[list] = []  # [attributes, text]
        self.ids: list[str] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.elements.append((tag, attributes))
        self.ids += [attributes["id"]] if "id" in attributes else []
        if tag not in VOID:
            self.open.append(tag)
            self.classes.append(attributes.get("class"))
        if tag == "script":
            self.scripts.append([attributes, ""])

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, (
            f"</{tag}> closes <{self.open[-1] if self.open else None}>"
        )
        self.open.pop()
        self.classes.pop()

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts[-1][1] += data
        if "fd" not in self.classes:  # the same number in Persian digits
            self.text.append(data)

    def named(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def built_text(folder: Path) -> str:
    """The text of a study's report in one line, both languages one after the other."""
    text = " ".join(Page(build(folder).read_text(encoding="utf-8")).text)
    return re.sub(r"\s+", " ", text)


def says(text: str, key: str, **values: object) -> bool:
    """Whether a page's text has the string `key` in both languages, however it is worded.

    Args:
        text: as `built_text` gives it.
        values: the text of placeholders; one that is not given may hold anything.
    """
    squeezed = "".join(text.split())
    return all(re.search(_pattern(template, values), squeezed) for template in strings()[key])


def _pattern(template: str, values: dict[str, object]) -> str:
    """A regular expression for a string without white space, with Latin digits."""
    pieces = re.split(r"\{(\w+)\}", template.translate(str.maketrans("۰۱۲۳۴۵۶۷۸۹", "0123456789")))
    pattern = ""
    for i, piece in enumerate(pieces):  # texts and names of placeholders take turns
        if i % 2 and piece not in values:
            pattern += ".{0,300}?"
        else:
            pattern += re.escape("".join(str(values[piece] if i % 2 else piece).split()))
    return pattern
