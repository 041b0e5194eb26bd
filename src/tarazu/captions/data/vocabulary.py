"""From captions to token ids: cleaning, word splitting, and the vocabulary.

    "A dog's red ball!" ─▶ a | dog's | red | ball ─▶ <sos> 4 87 19 55 <eos> <pad> <pad> ...

1. `clean` lowercases a caption and keeps its words.
2. `Vocabulary.build` counts the words of the training split alone; rare ones are left out.
3. `Vocabulary.encode` maps words to ids, with a fixed length.
"""

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
# Letters, with apostrophes and hyphens inside a word ("man's", "t-shirt"); digits, punctuation and
# symbols are left out.
WORD = re.compile(r"[^\W\d_]+(?:['-][^\W\d_]+)*")


def clean(caption: str) -> list[str]:
    """Split a caption into lowercase words, without punctuation, symbols and digits."""
    text = unicodedata.normalize("NFKC", caption).lower()
    return WORD.findall(text.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'"))


@dataclass(frozen=True)
class Vocabulary:
    """Words by id: the four special tokens first, then the words by falling frequency.

    `<pad>` fills a caption to the fixed length, `<sos>` starts it, `<eos>` ends it, `<unk>`
    stands for any other word.

    Args:
        words: all tokens; the index is the id.
        min_count: how often training must have a word.
        max_length: most words of an encoded caption.
    """

    words: tuple[str, ...]
    min_count: int
    max_length: int

    @classmethod
    def build(cls, captions: Iterable[list[str]], min_count: int, max_length: int) -> Vocabulary:
        """Count words and keep the frequent ones.

        Args:
            captions: cleaned captions of the training split, for a word that only the test split
                has must stay unknown.
            min_count: how often a word must occur.
            max_length: most words of an encoded caption.
        """
        counts = Counter(word for caption in captions for word in caption)
        frequent = [word for word, count in counts.items() if count >= min_count]
        frequent.sort(key=lambda word: (-counts[word], word))
        return cls(SPECIALS + tuple(frequent), min_count, max_length)

    @cached_property
    def ids(self) -> dict[str, int]:
        """The id of each word."""
        return {word: number for number, word in enumerate(self.words)}

    def __len__(self) -> int:
        return len(self.words)

    def encode(self, words: list[str]) -> list[int]:
        """Return `<sos> words <eos> <pad>...`, max_length + 2 ids.

        A longer caption is cut without an `<eos>`, so that the model does not learn to stop in
        the middle of a sentence.
        """
        length = self.max_length + 2
        ids = [SOS, *(self.ids.get(word, UNK) for word in words), EOS][:length]
        return ids + [PAD] * (length - len(ids))

    def decode(self, ids: Iterable[int]) -> list[str]:
        """Return the words up to `<eos>`, without `<pad>` and `<sos>`."""
        words = []
        for number in ids:
            if number == EOS:
                break
            if number not in (PAD, SOS):
                words.append(self.words[number])
        return words

    def to_json(self) -> str:
        """Return the text of vocabulary.json."""
        tree = {
            "specials": list(SPECIALS),
            "min_count": self.min_count,
            "max_length": self.max_length,
            "words": list(self.words),
        }
        return json.dumps(tree, ensure_ascii=False, indent=0)

    @classmethod
    def from_json(cls, text: str | bytes, location: str = "") -> Vocabulary:
        """Read the text of `to_json`.

        Raises:
            UserError: the text is no vocabulary.
        """
        try:
            tree = json.loads(text)
            words = tuple(tree["words"])
            if words[:4] != SPECIALS:
                raise ValueError("the special tokens are not the first four words")
            if not all(isinstance(word, str) for word in words):
                raise ValueError("a word is not text")
            if len(set(words)) != len(words):
                raise ValueError("a word occurs twice")
            return cls(words, int(tree["min_count"]), int(tree["max_length"]))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"not a vocabulary: {error}",
                location=location,
                hint="restore it from a copy, or remove it: `tarazu resume` writes it again",
            ) from None
