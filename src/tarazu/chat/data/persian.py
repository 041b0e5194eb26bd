"""Persian text: made uniform before training, folded for comparison, cut into words, and measured by script.

`normalize` changes how a text is encoded, never what it says: Arabic ye and kaf become Persian, invisible leftovers of
word processors go, the half-space (ZWNJ, U+200C) stays. `fold_for_match` throws more away and is for comparing only.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

NORMALIZATION_VERSION = 1  # part of the cache key: raise it when `normalize` changes

ZWNJ = "\u200c"

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
# C0 and C1 without tab and newline, soft hyphen, zero-width space, word joiner, byte order mark, non-characters
_CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\u00ad\u200b\u2060\ufeff\ufffe\uffff]")
_PRESENTATION = re.compile("[\ufb50-\ufdff\ufe70-\ufefc]")
_RARE = re.compile(
    "|".join(p.pattern for p in (_SURROGATE, _LINE_ENDS, _CONTROL, _BIDI, _PRESENTATION))
)
_ARABIC = re.compile("[يىك٠-٩]")
_WIDE_SPACE = re.compile("[\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]")
_SPACE_RUN = re.compile(
    r"(?<=\S)[ \t]{2,}(?=\S)|(?<=\S)\t(?=\S)"
)  # indentation stays: code depends on it
_LINE_TAIL = re.compile(r"[ \t]+(?=\n|$)")
_ZWNJ_TIDY = re.compile(f"{ZWNJ}{{2,}}|(?:(?<=\\s)|^){ZWNJ}+|{ZWNJ}+(?=\\s|$)")
_MARKS = re.compile(
    "[\u064b-\u065f\u0670\u0610-\u061a\u06d6-\u06ed]"
)  # vowel signs and Koranic marks
_ARABIC_SET, _LATIN_SET = (
    "".join(chr(c) for a, b in ranges for c in range(a, b) if chr(c).isalpha())
    for ranges in (((0x600, 0x900), (0xFB50, 0xFEFD)), ((0x41, 0x250),))
)
_ARABIC_LETTERS, _LATIN_LETTERS = re.compile(f"[{_ARABIC_SET}]+"), re.compile(f"[{_LATIN_SET}]+")
_OTHER_LETTER = re.compile(f"[^\\W\\d_{_ARABIC_SET}{_LATIN_SET}]")
# a run of letters, marks and digits; a half-space or a Latin apostrophe or hyphen inside joins, as the eye does
_WORD = re.compile(
    f"[^\\W_]+(?:[\u064b-\u065f\u0670]*(?:[{ZWNJ}'’-](?=[^\\W_]))?[^\\W_]+)*[\u064b-\u065f\u0670]*"
)


@dataclass(frozen=True)
class LetterCounts:
    """Letters of a text by script, as counts; digits and punctuation belong to none."""

    arabic: int = 0
    latin: int = 0
    other: int = 0

    @property
    def letters(self) -> int:
        return self.arabic + self.latin + self.other


def normalize(text: str) -> tuple[str, set[str]]:
    """The text in its uniform form, and the names of the repairs that changed it. Applying it twice changes nothing."""
    repairs: set[str] = set()

    def step(name: str, pattern: re.Pattern, replacement, text: str) -> str:
        new = pattern.sub(replacement, text)
        if new != text:
            repairs.add(name)
        return new

    if _RARE.search(text):  # most texts have none of these
        text = step(SURROGATES, _SURROGATE, "", text)
        text = step(SPACES, _LINE_ENDS, "\n", text)
        text = step(CONTROLS, _CONTROL, "", text)
        text = step(BIDI, _BIDI, "", text)
        text = step(LETTERS, _PRESENTATION, lambda m: unicodedata.normalize("NFKC", m[0]), text)
    if not unicodedata.is_normalized(
        "NFC", text
    ):  # before ye is replaced: hamza composes with the Arabic one only
        text = unicodedata.normalize("NFC", text)
        repairs.add(FORM)
    if _ARABIC.search(text):
        text = text.translate(_PERSIAN)
        repairs.add(LETTERS)
    text = step(SPACES, _WIDE_SPACE, " ", text)
    text = step(HALF_SPACES, _ZWNJ_TIDY, lambda m: ZWNJ if _joins(m) else "", text)
    text = step(SPACES, _LINE_TAIL, "", text)
    return step(SPACES, _SPACE_RUN, " ", text), repairs


def normalize_for_matching(text: str) -> str:
    """A form in which equal answers look equal: ASCII digits, no half-space, vowel signs or punctuation, one space.

    For checks, exact match and ROUGE tokens; never shown to a reader.
    """
    text, _ = normalize(text)
    text = (
        _MARKS.sub("", unicodedata.normalize("NFC", text))
        .translate(_ONE_LETTER)
        .translate(_TO_ASCII_DIGITS)
    )
    text = "".join(" " if unicodedata.category(c).startswith("P") else c for c in text.casefold())
    return " ".join(text.split())


def words(text: str) -> list[str]:
    """The words of a text; a half-space joins its two sides into one word (می‌روم)."""
    return _WORD.findall(text)


def letter_counts(text: str) -> LetterCounts:
    """How many letters are Arabic-script (Persian among them), Latin and other."""
    arabic, latin = (
        sum(map(len, runs.findall(text))) for runs in (_ARABIC_LETTERS, _LATIN_LETTERS)
    )
    return LetterCounts(arabic, latin, sum(c.isalpha() for c in _OTHER_LETTER.findall(text)))


def english_fraction(text: str) -> float:
    """Latin letters among all letters, 0..1; 0 for a text without letters."""
    shares = letter_counts(text)
    return shares.latin / shares.letters if shares.letters else 0.0


def _joins(match: re.Match) -> bool:
    """Whether a run of half-spaces stands between two visible characters, where one of them is meant."""
    before, after = match.string[: match.start()][-1:], match.string[match.end() :][:1]
    return bool(before) and bool(after) and not before.isspace() and not after.isspace()
