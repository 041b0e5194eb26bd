"""Texts of a run folder in both languages: English ones that tarazu itself writes there, and notes that a recipe gives in both.

The strings whose keys begin as in `FORMS` are the very forms of those texts, with their figures left open: a text that fits
one of them is shown in both languages with its own figures; any other stands as it is in the file.
"""

from __future__ import annotations

import re
from functools import cache

from markupsafe import Markup

from tarazu.report.render.bilingual import (
    Bilingual,
    code,
    data_text,
    digits,
    listed,
    strings,
    translate,
    translate_or,
    visible,
)

FORMS = ("compared.", "tolerance.", "data_note.", "code_path_value.")
FIGURE = re.compile(r"[\d.,e+-]+|inf|nan")


def translate_known(text: object) -> Bilingual | Markup:
    """The text in both languages, or as data."""
    found = recognised(text)
    return found if isinstance(found, Bilingual) else data_text(found)


def translate_note(note: object) -> Bilingual | Markup:
    """A recipe's note: a text, or one for each language."""
    sides = [note.get(language) for language in ("fa", "en")] if isinstance(note, dict) else []
    if not sides or not all(isinstance(side, str) for side in sides):
        return translate_known(note)
    isolated = Markup(
        '<bdi dir="{}">{}</bdi>'
    )  # its language is known: a Persian note may begin with a Latin name
    return Bilingual(
        *(
            isolated.format(way, visible(side))
            for way, side in zip(("rtl", "ltr"), sides, strict=True)
        )
    )


def code_paths_text(paths: object) -> Bilingual | Markup:
    """The ledger's "which of several code paths ran": `attention: sdpa, layers: plain, CUDA graphs`."""
    pairs = paths.items() if isinstance(paths, dict) else ()
    parts = [
        translate(
            "code_path.pair",
            what=translate_or(f"code_path.{key}", key),
            how=listed([translate_known(piece) for piece in str(value).split(", ")]),
        )
        for key, value in pairs
    ]
    return listed(parts, "؛ ", "; ") if parts else Markup("")


def recognised(text: object) -> object:
    """The text in both languages if tarazu wrote it, else the text itself."""
    for key, format in _forms():
        if found := format.fullmatch(str(text)):
            return translate(
                key, **{name: _figure(value) for name, value in found.groupdict().items()}
            )
    return text


def _figure(value: str) -> Markup:
    if not FIGURE.fullmatch(value):
        return code(value)
    return Markup('<bdi class="n" dir="ltr">{}</bdi>').format(digits(value))


@cache
def _forms() -> list[tuple[str, re.Pattern]]:
    """Each known English text with its figures left open."""
    return [
        (key, re.compile(re.sub(r"\\{(\w+)\\}", r"(?P<\1>.+?)", re.escape(en))))
        for key, (_, en) in strings().items()
        if key.startswith(FORMS)
    ]
