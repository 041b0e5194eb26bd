"""Cleaning captions, building the vocabulary, encoding and decoding."""

import pytest

from tarazu.captions.data.vocabulary import EOS, PAD, SOS, SPECIALS, UNK, Vocabulary, clean
from tarazu.errors import UserError


def test_cleaning_drops_case_punctuation_symbols_and_digits():
    assert clean("A man's T-shirt says '42' & \"Go!\" .") == ["a", "man's", "t-shirt", "says", "go"]
    assert clean("Two dogs , 3 cats") == ["two", "dogs", "cats"]
    assert clean("  \u0000 123 !!") == []


def test_words_are_those_that_occur_often_enough():
    train = [["a", "dog", "runs"], ["a", "dog"], ["a", "cat"]]
    words = Vocabulary.build(train, min_count=2, max_length=4)
    assert words.words == (*SPECIALS, "a", "dog")
    assert words.encode(["a", "zebra"]) == [SOS, 4, UNK, EOS, PAD, PAD]


def test_the_length_is_fixed_and_a_truncated_caption_has_no_end_token():
    words = Vocabulary.build([list("abcdefg")], 1, 3)
    assert [len(words.encode(list("abcdefg")[:n])) for n in range(8)] == [5] * 8
    assert EOS not in words.encode(list("abcd"))
    assert words.encode(list("abc"))[-1] == EOS


def test_decode_returns_the_words_up_to_the_end_token():
    words = Vocabulary.build([["a", "dog"]], 1, 5)
    assert words.decode([*words.encode(["a", "dog"]), 4, 4]) == ["a", "dog"]


def test_json_round_trip_and_malformed_json():
    words = Vocabulary.build([["a", "dog"]], 1, 5)
    assert Vocabulary.from_json(words.to_json()) == words
    for text in (
        "{}",
        "[1]",
        '{"words": ["a"], "min_count": 1, "max_length": 2}',
        words.to_json().replace('"dog"', '"a"'),
    ):
        with pytest.raises(UserError):
            Vocabulary.from_json(text)
