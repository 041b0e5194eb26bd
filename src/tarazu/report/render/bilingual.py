"""Text in Persian and English at once: the page holds both and shows one.

Short strings are pairs in `report/strings/*.json`; long texts are Markdown files in
`report/explanations/{fa,en}/`.

Everything that comes from a run folder passes `data_text` or `code`, so that it can neither become
markup nor change the direction of the text around it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from tarazu.report.render.number_format import format_number

LANGUAGES = ("fa", "en")
STRINGS = Path(__file__).parents[1] / "strings"
SHORT_NAME = 24  # characters of a name that fits on any line
# What `digits` writes: <span class="ld">1</span><span class="fd">۱</span>.
_LATIN_SPAN = re.compile('<(t?span) class="ld">([^<]*)</\\1>')
_PERSIAN_SPAN = re.compile('<(t?span) class="fd">[^<]*</\\1>')
_LATIN_DIGIT = re.compile("[0-9]")
_PERSIAN_NUMBER = re.compile("[۰-۹]+(?:[٫٬][۰-۹]+)*")
_TO_PERSIAN = str.maketrans("0123456789.,", "۰۱۲۳۴۵۶۷۸۹٫٬")
_TO_LATIN = str.maketrans("۰۱۲۳۴۵۶۷۸۹٫٬", "0123456789.,")
_NAME = re.compile(r"[\w./-]+")
_HASH = re.compile(r"[0-9a-f]{16,}")
_BREAK_AFTER = re.compile(r"([_/.])(?=[^\W\d])")  # prompt_|tuning, model.|layers
# Bidirectional embeddings, overrides and isolates, control characters, lone surrogates.
_HIDDEN = re.compile(
    "[\u202a-\u202e\u2066-\u2069\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ufeff\ud800-\udfff]"
)


@dataclass(frozen=True)
class Bilingual:
    """One text in both languages. A template writes two elements; the style shows one."""

    fa: Markup
    en: Markup

    def __html__(self) -> str:
        if self.fa == self.en:
            return self.en
        return Markup(
            '<span class="fa" lang="fa">{}</span><span class="en" lang="en">{}</span>'
        ).format(self.fa, _without_persian_digits(self.en))

    def plain(self, language: str) -> str:
        """The text without markup, for charts and attributes."""
        return _without_persian_digits(getattr(self, language)).striptags()


def _both(make: Callable[[str], Markup]) -> Bilingual:
    """The text that `make` returns for each language."""
    return Bilingual(*(make(language) for language in LANGUAGES))


def _without_persian_digits(text: Markup) -> Markup:
    """Text with Latin digits only."""
    return Markup(_LATIN_SPAN.sub(r"\2", _PERSIAN_SPAN.sub("", text)))


def visible(value: Any) -> str:
    """`value` as text, with hidden control characters replaced by their code points."""
    return _HIDDEN.sub(lambda match: f"⟨U+{ord(match.group()):04X}⟩", str(value))


def data_text(value: Any, limit: int | None = None) -> Markup:
    """Text from a run folder, isolated from the direction of what surrounds it.

    Args:
        value: the text; escaped here.
        limit: characters that are shown; a longer text says that it was cut.
    """
    text = visible(value)
    if limit is None or len(text) <= limit:
        return Markup('<bdi dir="auto">{}</bdi>').format(text)
    cut = translate("common.cut", shown=number(limit, "count"), total=number(len(text), "count"))
    return Markup('<bdi dir="auto">{}</bdi> <small class="cut">{}</small>').format(
        text[:limit] + " …", cut
    )


def code(value: Any) -> Markup:
    """A name, path or setting, left to right in both languages.

    A name is not broken over lines, except that a long one may break after `_`, `/` and `.`.
    """
    text = visible(value)
    if not _NAME.fullmatch(text) or _HASH.fullmatch(text):
        return Markup('<code dir="ltr">{}</code>').format(text)
    name = Markup(_BREAK_AFTER.sub(r"\1<wbr>", text)) if len(text) > SHORT_NAME else text
    return Markup('<code class="name" dir="ltr">{}</code>').format(name)


def in_language(value: Any, language: str) -> Markup:
    """`value` in one language; text that is not bilingual is escaped as data."""
    if isinstance(value, Bilingual):
        return getattr(value, language)
    return value if isinstance(value, Markup) else data_text(value)


def translate(key: str, **values: Any) -> Bilingual:
    """The interface string `key` in both languages, with `values` in its placeholders.

    Raises:
        KeyError: there is no such string.
    """
    texts = dict(zip(LANGUAGES, strings()[key], strict=True))

    def fill(language: str) -> Markup:
        template = _PERSIAN_NUMBER.sub(_switchable, str(escape(texts[language])))
        shown = {name: in_language(value, language) for name, value in values.items()}
        return Markup(template).format(**shown)

    return _both(fill)


def translate_or(key: str, fallback: Any) -> Bilingual:
    """The interface string `key`, or `fallback` as code where there is no such string."""
    return translate(key) if has(key) else Bilingual(code(fallback), code(fallback))


def has(key: str) -> bool:
    """Whether there is an interface string `key`."""
    return key in strings()


def spaced(*parts: Any) -> Bilingual:
    """The parts with a space between them."""
    return _both(lambda language: Markup(" ").join(in_language(part, language) for part in parts))


def small_note(part: Bilingual) -> Bilingual:
    """A smaller remark that is not broken over lines, such as an interval."""
    return _both(
        lambda language: Markup('<small class="span">{}</small>').format(
            in_language(part, language)
        )
    )


def joined(parts: list, conjunction: str = "common.and") -> Bilingual:
    """`a, b and c` in both languages; `conjunction` is a string key."""
    if not parts:
        return translate("common.none")
    if len(parts) == 1:
        return _both(lambda language: in_language(parts[0], language))
    return spaced(listed(parts[:-1]), translate(conjunction), parts[-1])


def listed(parts: list, fa: str = "، ", en: str = ", ") -> Bilingual:
    """The parts with a separator between them, by default each language's comma."""
    separators = {"fa": fa, "en": en}
    return _both(
        lambda language: Markup(separators[language]).join(
            in_language(part, language) for part in parts
        )
    )


def number(value: Any, format: str = "number", source: str = "") -> Bilingual:
    """A number with its unit in both languages; a dash where `value` is no finite number.

    Args:
        format: a format of `number_format.format_number`.
        source: the file that the number was read from, shown as its title.
    """
    text, unit = format_number(value, format)
    if text is None:
        dash = Markup('<span aria-hidden="true">—</span><span class="sr">{}</span>')
        unknown = translate("common.unknown")
        return _both(lambda language: dash.format(in_language(unknown, language)))
    title = Markup(' title="{}"').format(visible(source)) if source else Markup("")
    shown = Markup('<bdi class="n" dir="ltr"{}>{}</bdi>').format(title, digits(text))
    if not unit:
        return Bilingual(shown, shown)
    name, space = translate(f"unit.{unit}"), "" if unit == "percent" else " "
    return _both(
        lambda language: Markup("{}{}{}").format(shown, space, in_language(name, language))
    )


def digits(text: str, tag: str = "span") -> Markup:
    """A number in Latin and in Persian digits; the style shows one of them, without a script."""
    if not _LATIN_DIGIT.search(text):
        return escape(text)
    both = f'<{tag} class="ld">{{}}</{tag}><{tag} class="fd">{{}}</{tag}>'
    return Markup(both).format(text, text.translate(_TO_PERSIAN))


def _switchable(match: re.Match) -> str:
    """A number in Persian digits inside a string, in both digits."""
    return str(digits(match[0].translate(_TO_LATIN)))


@lru_cache(maxsize=1)
def strings() -> dict[str, tuple[str, str]]:
    """All interface strings: key -> (Persian, English), from `strings/*.json`.

    Raises:
        ValueError: two files have the same key.
    """
    texts: dict[str, tuple[str, str]] = {}
    for path in sorted(STRINGS.glob("*.json")):
        for key, (fa, en) in json.loads(path.read_text(encoding="utf-8")).items():
            if key in texts:
                raise ValueError(f"{path.name}: a second string {key!r}")
            texts[key] = (fa, en)
    return texts
