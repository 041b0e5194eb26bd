"""Normalize Persian text for training and for comparison; find its words; count its letters.

`normalize` changes how a text is encoded, never what it says: Arabic ye and kaf become Persian,
invisible control characters are removed, the half-space (ZWNJ, U+200C) stays.
`normalize_for_matching` also removes differences of spelling. It is for comparisons only.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

# Part of the cache key of tokenized rows: raise it when `normalize` changes.
NORMALIZATION_VERSION = 1

ZWNJ = "\u200c"

# The names of the repairs of `normalize`, shown in `check` and the report.
LETTERS = "Arabic letters or digits made Persian"
CONTROLS = "control characters removed"
BIDI = "direction overrides removed"
SURROGATES = "broken characters (lone surrogates) removed"
FORM = "characters recomposed (NFC)"
SPACES = "spaces tidied"
HALF_SPACES = "half-spaces tidied"

_PERSIAN = str.maketrans("يىك٠١٢٣٤٥٦٧٨٩", "ییک۰۱۲۳۴۵۶۷۸۹")
_TO_ASCII_DIGITS = str.maketrans("۰۱۲۳۴۵۶۷۸۹٠١٢٣٤٥٦٧٨٩", "01234567890123456789")
_ONE_LETTER = str.maketrans(
    {"أ": "ا", "إ": "ا", "ٱ": "ا", "ة": "ه", "ۀ": "ه", "ؤ": "و", "ـ": None, ZWNJ: None}
)

_SURROGATE = re.compile("[\ud800-\udfff]")
_BIDI = re.compile("[\u200e\u200f\u061c\u202a-\u202e\u2066-\u2069]")
_LINE_ENDS = re.compile("\r\n?|[\u0085\u2028\u2029\x0b\x0c]")
# C0 and C1 controls except tab and newline; soft hyphen, zero-width space, word joiner, byte order
# mark, non-characters
_CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\u00ad\u200b\u2060\ufeff\ufffe\uffff]")
_PRESENTATION = re.compile("[\ufb50-\ufdff\ufe70-\ufefc]")
_RARE = re.compile(
    "|".join(p.pattern for p in (_SURROGATE, _LINE_ENDS, _CONTROL, _BIDI, _PRESENTATION))
)  # any of the patterns above
_ARABIC = re.compile("[يىك٠-٩]")
_WIDE_SPACE = re.compile("[\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]")
# Runs of spaces inside a line. Indentation stays, because code depends on it.
_SPACE_RUN = re.compile(r"(?<=\S)[ \t]{2,}(?=\S)|(?<=\S)\t(?=\S)")
_LINE_TAIL = re.compile(r"[ \t]+(?=\n|$)")
_ZWNJ_TIDY = re.compile(f"{ZWNJ}{{2,}}|(?:(?<=\\s)|^){ZWNJ}+|{ZWNJ}+(?=\\s|$)")
_VOWEL_SIGNS = re.compile("[\u064b-\u065f\u0670\u0610-\u061a\u06d6-\u06ed]")  # and Koranic marks
_ARABIC_SET, _LATIN_SET = (
    "".join(chr(c) for a, b in ranges for c in range(a, b) if chr(c).isalpha())
    for ranges in (((0x600, 0x900), (0xFB50, 0xFEFD)), ((0x41, 0x250),))
)
_ARABIC_LETTERS = re.compile(f"[{_ARABIC_SET}]+")
_LATIN_LETTERS = re.compile(f"[{_LATIN_SET}]+")
_OTHER_LETTER = re.compile(f"[^\\W\\d_{_ARABIC_SET}{_LATIN_SET}]")
# A word is a run of letters, vowel signs and digits. A half-space, apostrophe or hyphen inside it
# joins its two sides.
_WORD = re.compile(
    f"[^\\W_]+(?:[\u064b-\u065f\u0670]*(?:[{ZWNJ}'’-](?=[^\\W_]))?[^\\W_]+)*[\u064b-\u065f\u0670]*"
)


_Replacement = str | Callable[[re.Match[str]], str]


@dataclass(frozen=True)
class LetterCounts:
    """Number of letters of a text by script. Digits and punctuation are not letters."""

    arabic: int = 0
    latin: int = 0
    other: int = 0

    @property
    def letters(self) -> int:
        """All letters."""
        return self.arabic + self.latin + self.other


def normalize(text: str) -> tuple[str, set[str]]:
    """Bring a text to one encoding of Persian. Normalizing twice changes nothing more.

    Returns:
        The text, and the names of the repairs that changed it.
    """
    repairs: set[str] = set()

    def replace(name: str, pattern: re.Pattern[str], replacement: _Replacement, text: str) -> str:
        new = pattern.sub(replacement, text)
        if new != text:
            repairs.add(name)
        return new

    if _RARE.search(text):  # one search instead of five, because most texts have none of these
        text = replace(SURROGATES, _SURROGATE, "", text)
        text = replace(SPACES, _LINE_ENDS, "\n", text)
        text = replace(CONTROLS, _CONTROL, "", text)
        text = replace(BIDI, _BIDI, "", text)
        text = replace(LETTERS, _PRESENTATION, lambda m: unicodedata.normalize("NFKC", m[0]), text)
    # NFC comes before the Persian letters: hamza composes with the Arabic ye only.
    if not unicodedata.is_normalized("NFC", text):
        text = unicodedata.normalize("NFC", text)
        repairs.add(FORM)
    if _ARABIC.search(text):
        text = text.translate(_PERSIAN)
        repairs.add(LETTERS)
    text = replace(SPACES, _WIDE_SPACE, " ", text)
    text = replace(HALF_SPACES, _ZWNJ_TIDY, lambda m: ZWNJ if _joins(m) else "", text)
    text = replace(SPACES, _LINE_TAIL, "", text)
    return replace(SPACES, _SPACE_RUN, " ", text), repairs


def normalize_for_matching(text: str) -> str:
    """Bring equal answers to the same string: for checks, exact match and ROUGE, never for display.

    Letters are case-folded and hamza forms unified, digits become ASCII, half-spaces and vowel
    signs are removed, punctuation becomes a space.
    """
    text = _VOWEL_SIGNS.sub("", unicodedata.normalize("NFC", normalize(text)[0]))
    text = text.translate(_ONE_LETTER).translate(_TO_ASCII_DIGITS).casefold()
    text = "".join(" " if unicodedata.category(c).startswith("P") else c for c in text)
    return " ".join(text.split())


def words(text: str) -> list[str]:
    """The words of a text. A half-space joins its two sides into one word (می‌روم)."""
    return _WORD.findall(text)


def letter_counts(text: str) -> LetterCounts:
    """Count the letters of the Arabic script (with Persian), of the Latin script, and others."""
    return LetterCounts(
        arabic=sum(map(len, _ARABIC_LETTERS.findall(text))),
        latin=sum(map(len, _LATIN_LETTERS.findall(text))),
        other=sum(c.isalpha() for c in _OTHER_LETTER.findall(text)),
    )


def english_fraction(text: str) -> float:
    """Latin letters among all letters, 0..1; 0 for a text without letters."""
    counts = letter_counts(text)
    return counts.latin / counts.letters if counts.letters else 0.0


def _joins(match: re.Match[str]) -> bool:
    """Whether a run of half-spaces is between visible characters, where one is meant."""
    before, after = match.string[: match.start()][-1:], match.string[match.end() :][:1]
    return bool(before) and bool(after) and not before.isspace() and not after.isspace()
