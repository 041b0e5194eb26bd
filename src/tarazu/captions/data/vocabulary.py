"""Words and their numbers: cleaning, splitting into words, and the vocabulary that the training split alone decides."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from tarazu.errors import UserError

SPECIALS = ("<pad>", "<sos>", "<eos>", "<unk>")
PAD, SOS, EOS, UNK = range(4)
# Letters, with apostrophes and hyphens inside a word ("man's", "t-shirt"); digits, punctuation and symbols fall away.
WORD = re.compile(r"[^\W\d_]+(?:['-][^\W\d_]+)*")


def clean(caption: str) -> list[str]:
    """The words of a caption: lower case, without punctuation, symbols and digits."""
    text = (
        unicodedata.normalize("NFKC", caption)
        .lower()
        .replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    )
    return WORD.findall(text)


@dataclass(frozen=True)
class Vocabulary:
    """Words by number: the four special tokens first, then by how often training holds them.

    `<pad>` fills a caption up to the fixed length, `<sos>` starts it, `<eos>` ends it, `<unk>` stands for any other
    word.
    """

    words: tuple[str, ...]
    min_count: int
    max_length: int

    @classmethod
    def build(cls, captions: Iterable[list[str]], min_count: int, max_length: int) -> Vocabulary:
        """From the cleaned captions of the training split, and of no other."""
        counts = Counter(word for caption in captions for word in caption)
        kept = sorted(
            (word for word, count in counts.items() if count >= min_count),
            key=lambda word: (-counts[word], word),
        )
        return cls(SPECIALS + tuple(kept), min_count, max_length)

    @cached_property
    def ids(self) -> dict[str, int]:
        return {word: number for number, word in enumerate(self.words)}

    def __len__(self) -> int:
        return len(self.words)

    def encode(self, words: list[str]) -> list[int]:
        """`<sos> words <eos>`, filled with `<pad>` to the fixed length of max_length + 2.

        A longer caption is cut without an `<eos>`, so that the model never learns to stop in the middle of a sentence.
        """
        numbers = [SOS, *(self.ids.get(word, UNK) for word in words), EOS][: self.max_length + 2]
        return numbers + [PAD] * (self.max_length + 2 - len(numbers))

    def decode(self, numbers: Iterable[int]) -> list[str]:
        """The words up to `<eos>`; special tokens are left out."""
        words = []
        for number in numbers:
            if number == EOS:
                break
            if number not in (PAD, SOS):
                words.append(self.words[number])
        return words

    def to_json(self) -> str:
        tree = {
            "specials": list(SPECIALS),
            "min_count": self.min_count,
            "max_length": self.max_length,
            "words": list(self.words),
        }
        return json.dumps(tree, ensure_ascii=False, indent=0)

    @classmethod
    def from_json(cls, text: str | bytes, where: str = "") -> Vocabulary:
        """Reads back `to_json`. Raises `UserError` when it is not a vocabulary."""
        try:
            tree = json.loads(text)
            words = tuple(tree["words"])
            if (
                words[:4] != SPECIALS
                or len(set(words)) != len(words)
                or not all(isinstance(word, str) for word in words)
            ):
                raise ValueError(
                    "the special tokens are not the first four words, or a word is there twice"
                )
            return cls(words, int(tree["min_count"]), int(tree["max_length"]))
        except (ValueError, KeyError, TypeError) as error:
            todo = "bring it back from a copy, or remove it: `tarazu resume` then writes it again"
            raise UserError(f"not a vocabulary: {error}", location=where, hint=todo) from None
