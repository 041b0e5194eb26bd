"""Charts as files and as inline SVG: drawn once per language, readable without scripts, in the page's own colours."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import altair as alt
import vl_convert
from markupsafe import Markup, escape

from tarazu.report.render.bilingual import Bilingual, digits
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
_NOISE = re.compile(
    r'\s(?:role|aria-[a-z]+|style|class|pointer-events|font-family|stroke-miterlimit)="[^"]*"| opacity="1"'
)
_EMPTY = re.compile(r'<path d="(?:M0,0h0v0h0Z)?"(?: display="none")?/>')
_FIGURE = re.compile(
    "(<text[^>]*>)([−+0-9.,]*[0-9][0-9.,]*[kMGm%]?)</text>"
)  # an axis label; k, M, G as d3 writes them
_SENTENCE = re.compile(
    "(<text[^>]*>)([^<]*[\u0600-\u06ff][^<]*)</text>"
)  # Persian words, with figures among them perhaps
_AMONG = re.compile(r"\d+(?:[.,]\d+)*")
_PLACE = re.compile(r' (?:d|transform|x|y|x1|x2|y1|y2|width|height)="[^"]*"')
_DECIMALS = re.compile(r"(\d\.\d)\d+")


@dataclass(frozen=True)
class Figure:
    """One figure of the page: `svg` in both languages, its caption, the files that its numbers came from."""

    name: str
    svg: Bilingual
    caption: Bilingual
    sources: list[str]
    data: dict | None = (
        None  # what the page's own script draws: the same points, to hover, zoom and hide
    )


@dataclass
class FigureWriter:
    """Where figures are written: `figures/NAME.svg` and `.png` in English, `NAME.fa.svg` and `.png` in Persian."""

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
        """Draws `make(language)` for both languages, writes the files, and returns what the page shows."""
        if (
            name not in self.made
        ):  # a page that came out too large is put together again, with the same figures
            self.made[name] = Figure(name, self.drawn(name, caption, make), caption, sources, data)
        return self.made[name]

    def drawn(self, name: str, caption: Bilingual, make: Callable[[str], alt.Chart]) -> Bilingual:
        """The files of one figure, and its SVG for the page."""
        self.folder.mkdir(parents=True, exist_ok=True)
        sides = {}
        for language in ("fa", "en"):
            svg = draw(make(language))
            stem = name if language == "en" else f"{name}.fa"
            (self.folder / f"{stem}.svg").write_text(svg, encoding="utf-8")
            (self.folder / f"{stem}.png").write_bytes(vl_convert.svg_to_png(svg, scale=2))
            sides[language] = inline(svg, f"{name}-{language}", caption.plain(language))
        return Bilingual(**sides)


def draw(chart: alt.Chart) -> str:
    """The chart as SVG text."""
    spec = chart.to_dict(validate=False)
    spec["config"] = {**spec.get("config", {}), **_CONFIG}
    return vl_convert.vegalite_to_svg(spec)


def inline(svg: str, identity: str, label: str) -> Markup:
    """SVG for the page: its own ids, ink in the page's colour, one accessible name, no style attributes."""
    svg = re.sub(r"\bclip(\d+)", rf"{identity}-clip\1", _NOISE.sub("", svg))
    svg = re.sub(r'<rect width="[\d.]+" height="[\d.]+" fill="white"/>', "", svg, count=1)
    svg = _EMPTY.sub("", svg)
    svg = _PLACE.sub(
        lambda found: _DECIMALS.sub(r"\1", found[0]), svg
    )  # a tenth of a pixel; labels stay whole
    svg = svg.replace(f'stroke="{GRID}"', 'stroke="currentColor" stroke-opacity="0.15"')
    svg = svg.replace(f'"{INK}"', '"currentColor"')
    if identity.endswith("-fa"):
        svg = _FIGURE.sub(lambda found: f"{found[1]}{digits(found[2], 'tspan')}</text>", svg)
        svg = _SENTENCE.sub(
            lambda found: (
                f"{found[1]}{_AMONG.sub(lambda one: str(digits(one[0], 'tspan')), found[2])}</text>"
            ),
            svg,
        )
    return Markup(svg.replace("<svg ", f'<svg role="img" aria-label="{escape(label)}" ', 1))
