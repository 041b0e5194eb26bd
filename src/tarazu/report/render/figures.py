"""Charts as files and as inline SVG, drawn once per language, readable without scripts."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import altair as alt
import vl_convert
from markupsafe import Markup, escape

from tarazu.report.render.bilingual import LANGUAGES, Bilingual, digits
from tarazu.report.render.charts import FONT, GRID, INK

_CONFIG = {
    "background": "white",
    "font": FONT,
    "view": {"stroke": None},
    "axis": {
        "labelColor": INK,
        "titleColor": INK,
        "domainColor": INK,
        "tickColor": INK,
        "gridColor": GRID,
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
    },
    "legend": {"labelColor": INK, "titleColor": INK, "labelFontSize": 12},
    "text": {"color": INK, "fontSize": 11},
}
# Attributes that the page does not need, and paths that draw nothing.
_UNNEEDED_ATTRIBUTES = re.compile(
    r'\s(?:role|aria-[a-z]+|style|class|pointer-events|font-family|stroke-miterlimit)="[^"]*"'
    r'| opacity="1"'
)
_EMPTY_PATH = re.compile(r'<path d="(?:M0,0h0v0h0Z)?"(?: display="none")?/>')
_BACKGROUND = re.compile(r'<rect width="[\d.]+" height="[\d.]+" fill="white"/>')
_POSITION = re.compile(r' (?:d|transform|x|y|x1|x2|y1|y2|width|height)="[^"]*"')
_DECIMALS = re.compile(r"(\d\.\d)\d+")
# A text that is one number, with k, M, G or m as d3 writes them; and a text in Persian.
_NUMBER_TEXT = re.compile("(<text[^>]*>)([−+0-9.,]*[0-9][0-9.,]*[kMGm%]?)</text>")
_PERSIAN_TEXT = re.compile("(<text[^>]*>)([^<]*[\u0600-\u06ff][^<]*)</text>")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


@dataclass(frozen=True)
class Figure:
    """A figure of the page.

    Args:
        svg: the chart in both languages.
        sources: the files that its numbers came from.
        data: the same points for the page's script, which draws them to hover, zoom and hide.
    """

    name: str
    svg: Bilingual
    caption: Bilingual
    sources: list[str]
    data: dict | None = None


@dataclass
class FigureWriter:
    """Writes figures into a folder: NAME.svg and NAME.png in English, NAME.fa.* in Persian."""

    folder: Path
    made: dict[str, Figure] = field(default_factory=dict)

    def add(
        self,
        name: str,
        caption: Bilingual,
        make: Callable[[str], alt.Chart],
        sources: list[str],
        data: dict | None = None,
    ) -> Figure:
        """Draw a figure, write its files, and return what the page shows.

        A name that was drawn is not drawn again: a page that came out too large is put together
            again with the same figures.

        Args:
            make: returns the chart in "fa" or "en".
            sources: the files that its numbers came from.
            data: the points for the page's script.
        """
        if name not in self.made:
            self.made[name] = Figure(name, self.drawn(name, caption, make), caption, sources, data)
        return self.made[name]

    def drawn(self, name: str, caption: Bilingual, make: Callable[[str], alt.Chart]) -> Bilingual:
        """Write the files of one figure and return its SVG for the page."""
        self.folder.mkdir(parents=True, exist_ok=True)
        svgs = {}
        for language in LANGUAGES:
            svg = draw(make(language))
            stem = name if language == "en" else f"{name}.fa"
            (self.folder / f"{stem}.svg").write_text(svg, encoding="utf-8")
            (self.folder / f"{stem}.png").write_bytes(vl_convert.svg_to_png(svg, scale=2))
            svgs[language] = inline(svg, f"{name}-{language}", caption.plain(language))
        return Bilingual(**svgs)


def draw(chart: alt.Chart) -> str:
    """The chart as SVG text."""
    spec = chart.to_dict(validate=False)
    spec["config"] = {**spec.get("config", {}), **_CONFIG}
    return vl_convert.vegalite_to_svg(spec)


def inline(svg: str, identity: str, label: str) -> Markup:
    """Prepare an SVG for the page.

    Args:
        svg: as `draw` gives it.
        identity: NAME-LANGUAGE. Ids get it as a prefix, because all figures share one page; a
            Persian figure gets its numbers in both digits.
        label: the accessible name.

    Returns:
        The SVG without style attributes and background, its ink in the page's text colour,
        positions rounded to a tenth of a pixel (texts are not).
    """
    svg = re.sub(r"\bclip(\d+)", rf"{identity}-clip\1", _UNNEEDED_ATTRIBUTES.sub("", svg))
    svg = _BACKGROUND.sub("", svg, count=1)
    svg = _EMPTY_PATH.sub("", svg)
    svg = _POSITION.sub(lambda position: _DECIMALS.sub(r"\1", position[0]), svg)
    svg = svg.replace(f'stroke="{GRID}"', 'stroke="currentColor" stroke-opacity="0.15"')
    svg = svg.replace(f'"{INK}"', '"currentColor"')
    if identity.endswith("-fa"):
        svg = _NUMBER_TEXT.sub(lambda text: f"{text[1]}{digits(text[2], 'tspan')}</text>", svg)
        svg = _PERSIAN_TEXT.sub(_with_both_digits, svg)
    return Markup(svg.replace("<svg ", f'<svg role="img" aria-label="{escape(label)}" ', 1))


def _with_both_digits(text: re.Match) -> str:
    """A Persian text whose numbers stand in both digits."""
    label = _NUMBER.sub(lambda number: str(digits(number[0], "tspan")), text[2])
    return f"{text[1]}{label}</text>"
