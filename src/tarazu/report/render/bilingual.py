"""Text in two languages at once: Persian and English stand side by side in the page, and the page shows one of them.

Everything that comes from a run folder passes `data_text`: it can never become markup, nor turn the text around it.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

_PERSIAN_FORM = re.compile('<(t?span) class="fd">[^<]*</\\1>')
_OWN_DIGITS = re.compile("[۰-۹]+(?:[٫٬][۰-۹]+)*")
_LATIN_FORM = re.compile('<(t?span) class="ld">([^<]*)</\\1>')
_NAME, _HASH = re.compile(r"[\w./-]+"), re.compile(r"[0-9a-f]{16,}")
_JOINT = re.compile(r"([_/.])(?=[^\W\d])")  # prompt_ tuning, model. layers
_DIGIT = re.compile("[0-9]")
_DIGITS = str.maketrans("0123456789.,", "۰۱۲۳۴۵۶۷۸۹٫٬")
_LATIN = str.maketrans("۰۱۲۳۴۵۶۷۸۹٫٬", "0123456789.,")
SHORT = 24  # characters of a name that any line has room for
STRINGS = Path(__file__).parents[1] / "strings"
# Bidi embeddings, overrides and isolates, control characters, lone surrogates: shown by their number, never obeyed.
_HIDDEN = re.compile(
    "[\u202a-\u202e\u2066-\u2069\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ufeff\ud800-\udfff]"
)


@dataclass(frozen=True)
class Bilingual:
    """One text in both languages; in a template it becomes two elements of which the page shows one."""

    fa: Markup
    en: Markup

    def __html__(self) -> str:
        if self.fa == self.en:
            return self.en
        return Markup(
            '<span class="fa" lang="fa">{}</span><span class="en" lang="en">{}</span>'
        ).format(self.fa, _without_persian_digits(self.en))

    def plain(self, language: str) -> str:
        """The text without its markup, for figures and attributes."""
        return _without_persian_digits(getattr(self, language)).striptags()


def _without_persian_digits(text: Markup) -> Markup:
    """Text that is only ever shown with Latin digits."""
    return Markup(_LATIN_FORM.sub(r"\2", _PERSIAN_FORM.sub("", text)))


def visible(value: Any) -> str:
    """`value` as text in which hidden control characters are shown by their code point."""
    return _HIDDEN.sub(lambda found: f"⟨U+{ord(found.group()):04X}⟩", str(value))


def data_text(value: Any, limit: int | None = None) -> Markup:
    """Text from the folder, isolated from the direction of what surrounds it; cut at `limit` characters, saying so."""
    text = visible(value)
    if limit is not None and len(text) > limit:
        cut = translate(
            "common.cut", shown=number(limit, "count"), total=number(len(text), "count")
        )
        return Markup('<bdi dir="auto">{}</bdi> <small class="cut">{}</small>').format(
            text[:limit] + " …", cut
        )
    return Markup('<bdi dir="auto">{}</bdi>').format(text)


def code(value: Any) -> Markup:
    """A name, path or setting: left to right in both languages. A name stays whole; a long one is broken at its joints."""
    text = visible(value)
    if not _NAME.fullmatch(text) or _HASH.fullmatch(text):
        return Markup('<code dir="ltr">{}</code>').format(text)
    return Markup('<code class="name" dir="ltr">{}</code>').format(
        Markup(_JOINT.sub(r"\1<wbr>", text)) if len(text) > SHORT else text
    )


def in_language(value: Any, language: str) -> Markup:
    """The side of `value` that `language` reads."""
    if isinstance(value, Bilingual):
        return getattr(value, language)
    return value if isinstance(value, Markup) else data_text(value)


def translate(key: str, **values: Any) -> Bilingual:
    """The string `key` in both languages with `values` put in. Raises KeyError for a string that is not there."""
    fa, en = strings()[key]
    return Bilingual(
        *(
            Markup(_OWN_DIGITS.sub(_switched, str(escape(text)))).format(
                **{k: in_language(v, lang) for k, v in values.items()}
            )
            for text, lang in ((fa, "fa"), (en, "en"))
        )
    )


def translate_or(key: str, fallback: Any) -> Bilingual:
    """As `say`, with `fallback` where there is no such string (a new kind of method, a new event)."""
    return translate(key) if key in strings() else Bilingual(code(fallback), code(fallback))


def has(key: str) -> bool:
    return key in strings()


def spaced(*parts: Any) -> Bilingual:
    """The parts with a space between them."""
    return Bilingual(
        *(Markup(" ").join(in_language(part, lang) for part in parts) for lang in ("fa", "en"))
    )


def small_note(part: Bilingual) -> Bilingual:
    """A smaller remark that is not broken over lines: an interval."""
    return Bilingual(
        *(
            Markup('<small class="span">{}</small>').format(in_language(part, lang))
            for lang in ("fa", "en")
        )
    )


def joined(parts: list, both: str = "common.and") -> Bilingual:
    """`a, b and c` in both languages."""
    if not parts:
        return translate("common.none")
    sides = []
    for lang, comma in (("fa", "، "), ("en", ", ")):
        items = [in_language(part, lang) for part in parts]
        last = Markup(" {} ").format(in_language(translate(both), lang))
        sides.append(
            items[0] if len(items) == 1 else Markup(comma).join(items[:-1]) + last + items[-1]
        )
    return Bilingual(*sides)


def listed(parts: list, fa: str = "، ", en: str = ", ") -> Bilingual:
    """The parts with each language's comma (or what is given) between them."""
    return Bilingual(
        *(
            Markup(mark).join(in_language(part, lang) for part in parts)
            for lang, mark in (("fa", fa), ("en", en))
        )
    )


def number(value: Any, format: str = "number", source: str = "") -> Bilingual:
    """A figure with its unit in both languages, and the file that it came from as its title.

    Forms: number (4 significant digits), count (thousands), percent, points (1 decimal), loss (3 decimals), bytes,
    seconds, signed, signed_points, signed_percent, percentage_points (between two shares), rate (scientific), flops (operations), p.
    """
    from tarazu.report.render.number_format import (
        format_number,  # the shapes need `Both`'s strings: imported late
    )

    text, unit = format_number(value, format)
    if text is None:
        dash = Markup('<span aria-hidden="true">—</span><span class="sr">{}</span>')
        return Bilingual(
            *(dash.format(in_language(translate("common.unknown"), lang)) for lang in ("fa", "en"))
        )
    attributes = Markup(' title="{}"').format(visible(source)) if source else Markup("")
    figure = Markup('<bdi class="n" dir="ltr"{}>{}</bdi>').format(attributes, digits(text))
    if not unit:
        return Bilingual(figure, figure)
    names = translate(f"unit.{unit}")
    return Bilingual(
        *(
            Markup("{}{}{}").format(
                figure, "" if unit == "percent" else " ", in_language(names, lang)
            )
            for lang in ("fa", "en")
        )
    )


def digits(text: str, tag: str = "span") -> Markup:
    """A figure in Latin and in Persian digits: the page shows one of them (a switch that needs no script)."""
    if not _DIGIT.search(text):
        return escape(text)
    two = '<{tag} class="ld">{}</{tag}><{tag} class="fd">{}</{tag}>'
    return Markup(two.replace("{tag}", tag)).format(text, text.translate(_DIGITS))


def _switched(found: re.Match) -> str:
    """A fixed figure of a Persian sentence, so that it follows the page's switch as measured ones do."""
    return str(digits(found[0].translate(_LATIN)))


@lru_cache(maxsize=1)
def strings() -> dict[str, tuple[str, str]]:
    """Every interface string: key -> (fa, en), from `strings/*.json`."""
    found: dict[str, tuple[str, str]] = {}
    for path in sorted(STRINGS.glob("*.json")):
        for key, (fa, en) in json.loads(path.read_text(encoding="utf-8")).items():
            if key in found:
                raise ValueError(f"{path.name}: {key!r} is there twice")
            found[key] = (fa, en)
    return found
