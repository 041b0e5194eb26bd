"""Persian text: what normalization changes and what it must leave as it is."""

from __future__ import annotations

import random
import unicodedata

import pytest

from tarazu.chat.data import persian
from tarazu.chat.data.persian import (
    english_fraction,
    letter_counts,
    normalize,
    normalize_for_matching,
    words,
)


@pytest.mark.parametrize(
    ("before", "after", "repair"),
    [
        ("كتاب علي", "کتاب علی", persian.LETTERS),
        ("موسى", "موسی", persian.LETTERS),
        ("٤٥٦", "۴۵۶", persian.LETTERS),
        ("ﻛﺘﺎﺏ ﻻﻟﻪ", "کتاب لاله", persian.LETTERS),  # presentation forms, as PDFs give them
        ("الف\u0000ب\u0007", "الفب", persian.CONTROLS),
        ("\ufeffسلام\u200b", "سلام", persian.CONTROLS),
        ("سلام\u202eدنیا\u202c\u200f", "سلامدنیا", persian.BIDI),
        ("درست\ud83d", "درست", persian.SURROGATES),
        ("ا\u0653ن", "آن", persian.FORM),
        ("یک  دو\u00a0سه\t چهار ", "یک دو سه چهار", persian.SPACES),
        ("یک\r\nدو\u2028سه", "یک\nدو\nسه", persian.SPACES),
        ("می\u200c\u200cروم", "می\u200cروم", persian.HALF_SPACES),
        ("می\u200c روم\u200c", "می روم", persian.HALF_SPACES),
    ],
)
def test_repairs(before: str, after: str, repair: str) -> None:
    assert normalize(before) == (after, {repair})


@pytest.mark.parametrize(
    "text",
    [
        "می‌روم؛ کتاب‌های «نو» را ۱۲٫۵ درصد ارزان‌تر خریدم.",
        "مسئله‌ای تأثیرگذار، مؤمن و خانهٔ ما",  # hamza on its seats stays
        "def f(x):\n    if x:\n\treturn 1\n\n\nprint(f(2))",  # indentation and blank lines matter
        "😀 👨‍👩‍👧 é 中文",
    ],
)
def test_correct_text_does_not_change(text: str) -> None:
    assert normalize(text) == (text, set())


def test_arabic_ye_with_hamza_composes_before_it_is_replaced() -> None:
    assert normalize("مس\u064a\u0654ول")[0] == "مسئول"


def test_normalizing_twice_changes_nothing() -> None:
    pieces = [
        *"يىكةۀأ٤۴اب \n\t\r\u200c\u200d\u00a0\u202e\ufeff\x00\x85",
        "\ud800",
        "\u0653",
        "\u0654",
        "ﻻ",
        "😀",
        "A",
        "́",
    ]
    rng = random.Random(0)
    for _ in range(3000):
        text = "".join(rng.choice(pieces) for _ in range(rng.randint(0, 12)))
        once, _ = normalize(text)
        assert normalize(once) == (once, set())
        once.encode("utf-8")
        assert unicodedata.is_normalized("NFC", once)
        assert not any(unicodedata.category(c) == "Cc" and c not in "\n\t" for c in once)


def test_words_are_joined_by_half_spaces() -> None:
    assert words("می‌روم، کتاب‌هایشان؟ (۱۲) don't e-mail") == [
        "می‌روم",
        "کتاب‌هایشان",
        "۱۲",
        "don't",
        "e-mail",
    ]
    assert words("  ... «»،؛ \n") == []
    assert words("مُهَندِس آمد") == ["مُهَندِس", "آمد"]


def test_equal_answers_match() -> None:
    variants = ["مي‌روم به خانۀ ۱۲", "میروم به خانه 12!", "«میروم»، بهِ خانه   ۱۲."]
    assert {normalize_for_matching(text) for text in variants} == {"میروم به خانه 12"}
    assert normalize_for_matching("Tehran") == normalize_for_matching("TEHRAN")
    assert normalize_for_matching("12") != normalize_for_matching("21")
    assert normalize_for_matching("علی") != normalize_for_matching("علیه")


def test_letters_by_script() -> None:
    counts = letter_counts("سلام ABC ёё ۱۲۳ ...!")
    assert (counts.arabic, counts.latin, counts.other) == (4, 3, 2)
    assert english_fraction("سلام abcd") == 0.5
    assert english_fraction("۱۲۳") == english_fraction("") == 0.0
