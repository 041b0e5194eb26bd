"""Translate texts of a run folder: messages that tarazu itself wrote, and notes of a recipe.

A string whose key starts with one of `MESSAGE_KEYS` is the pattern of a message. A text that fits a
pattern is shown in both languages with its own numbers; any other text is shown as it is in the
file.
"""

from __future__ import annotations

import re
from functools import cache

from markupsafe import Markup

from tarazu.report.render.bilingual import (
    LANGUAGES,
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

MESSAGE_KEYS = ("compared.", "tolerance.", "data_note.", "code_path_value.")
NUMBER = re.compile(r"[\d.,e+-]+|inf|nan")
DIRECTIONS = {"fa": "rtl", "en": "ltr"}


def translate_known(text: object) -> Bilingual | Markup:
    """The text in both languages if tarazu wrote it, else as data."""
    match = recognised(text)
    return match if isinstance(match, Bilingual) else data_text(match)


def translate_note(note: object) -> Bilingual | Markup:
    """A recipe's note: one text, or one for each language."""
    texts = [note.get(language) for language in LANGUAGES] if isinstance(note, dict) else []
    if not texts or not all(isinstance(text, str) for text in texts):
        return translate_known(note)
    # The direction is given, not guessed: a Persian note may begin with a Latin name.
    isolated = Markup('<bdi dir="{}">{}</bdi>')
    return Bilingual(
        *(
            isolated.format(DIRECTIONS[language], visible(text))
            for language, text in zip(LANGUAGES, texts, strict=True)
        )
    )


def code_paths_text(paths: object) -> Bilingual | Markup:
    """The code paths of a ledger: `attention: sdpa; layers: compiled, CUDA graphs`."""
    pairs = paths.items() if isinstance(paths, dict) else ()
    parts = [
        translate(
            "code_path.pair",
            what=translate_or(f"code_path.{key}", key),
            how=listed([translate_known(choice) for choice in str(value).split(", ")]),
        )
        for key, value in pairs
    ]
    return listed(parts, "؛ ", "; ") if parts else Markup("")


def recognised(text: object) -> object:
    """The text in both languages if tarazu wrote it, else the text itself."""
    for key, pattern in _patterns():
        if match := pattern.fullmatch(str(text)):
            return translate(key, **{k: _placeholder(v) for k, v in match.groupdict().items()})
    return text


def _placeholder(value: str) -> Markup:
    """What stood in a placeholder: a number with both digits, or a name."""
    if not NUMBER.fullmatch(value):
        return code(value)
    return Markup('<bdi class="n" dir="ltr">{}</bdi>').format(digits(value))


@cache
def _patterns() -> list[tuple[str, re.Pattern[str]]]:
    """Each message's English text with its placeholders as named groups."""
    return [
        (key, re.compile(re.sub(r"\\{(\w+)\\}", r"(?P<\1>.+?)", re.escape(english))))
        for key, (_, english) in strings().items()
        if key.startswith(MESSAGE_KEYS)
    ]
