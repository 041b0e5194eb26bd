"""Concepts of everyday photographs and the words that name them, for the error analysis.

`objects.txt` lists the things by category, `attributes.txt` the colours, counts, relations and
actions. The head of objects.txt explains their format.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

MAX_PHRASE_LENGTH = 4  # words of the longest phrase in the lists
Phrase = tuple[str, ...]


@dataclass(frozen=True)
class Lexicon:
    """Concepts by the words that name them.

    Args:
        concept_of: a word or phrase, as a tuple of tokens, to its concept.
        category_of: a concept to its category.
        object_categories: the categories of objects.txt.
        implied: a concept to all concepts that it implies, itself included.
        compounds: a concept to its parts, where it has two or more.
    """

    concept_of: dict[Phrase, str]
    category_of: dict[str, str]
    object_categories: frozenset[str]
    implied: dict[str, frozenset[str]]
    compounds: dict[str, frozenset[str]]

    def mentions(self, tokens: list[str]) -> frozenset[str]:
        """Return the concepts that a tokenised caption names; longer phrases take precedence."""
        concepts = set()
        start = 0
        while start < len(tokens):
            for length in range(MAX_PHRASE_LENGTH, 0, -1):
                concept = self.concept_of.get(tuple(tokens[start : start + length]))
                if concept:
                    concepts.add(concept)
                    break
            start += length  # past the phrase that was found, or past one word
        return frozenset(concepts)

    def closure(self, concepts: frozenset[str]) -> frozenset[str]:
        """Return `concepts`, all that they imply, and every compound whose parts are all there."""
        implied = set().union(*(self.implied[concept] for concept in concepts))
        complete = {name for name, parts in self.compounds.items() if parts <= implied}
        return frozenset(implied | complete)


@cache
def load() -> Lexicon:
    """Read the lexicon from its two files, once.

    Raises:
        ValueError: a word names two concepts.
    """
    concept_of: dict[Phrase, str] = {}
    category_of: dict[str, str] = {}
    parents: dict[str, set[str]] = {}
    object_categories = set()
    for file in ("objects.txt", "attributes.txt"):
        for category, name, words, implied in _entries(Path(__file__).with_name(file)):
            if file == "objects.txt":
                object_categories.add(category)
                inflection = "noun"
            else:
                inflection = "verb" if category == "actions" else None
            category_of[name], parents[name] = category, implied
            for phrase in set().union(*(forms(word, inflection) for word in [name, *words])):
                if concept_of.setdefault(phrase, name) != name:
                    raise ValueError(
                        f"{' '.join(phrase)!r} names both {concept_of[phrase]!r} and {name!r}"
                    )
    return Lexicon(
        concept_of,
        category_of,
        frozenset(object_categories),
        {name: _ancestors(name, parents) for name in parents},
        {name: frozenset(parts) for name, parts in parents.items() if len(parts) > 1},
    )


def _entries(path: Path) -> Iterator[tuple[str, str, list[str], set[str]]]:
    """Yield (category, name, other words, implied concepts) of each entry of a file."""
    category = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            category = line.strip("[]")
        elif line and not line.startswith("#"):
            name, _, rest = line.partition(":")
            words, _, implied = rest.partition(">")
            yield category, name, words.split(), set(implied.split())


def _ancestors(name: str, parents: dict[str, set[str]]) -> frozenset[str]:
    """`name` and all that it implies, in any number of steps."""
    reached: set[str] = set()
    queue = [name]
    while queue:
        current = queue.pop()
        if current not in reached:
            reached.add(current)
            queue += parents[current]
    return frozenset(reached)


def forms(word: str, inflection: str | None) -> set[Phrase]:
    """Return a word or phrase and its regular inflections, which change the last word only.

    Args:
        word: words joined by `_`.
        inflection: "noun" (plural), "verb" (-s, -ing, -ed) or None (no other form).
    """
    *before, last = word.split("_")
    last_forms = {last}
    if inflection:
        last_forms.add(_plural(last))
    if inflection == "verb":
        last_forms |= _verb_forms(last)
    return {(*before, form) for form in last_forms}


def _plural(word: str) -> str:
    """The regular plural, which is the third person of a verb as well."""
    if re.search(r"(s|x|z|ch|sh)$", word):
        return word + "es"
    return re.sub(r"y$", "ies", word) if re.search(r"[^aeiou]y$", word) else word + "s"


def _verb_forms(word: str) -> set[str]:
    """The -ing and -ed forms: "hug" doubles its g, "ride" drops its e, "carry" becomes carried."""
    if re.search(r"[^aeiou]e$", word):
        return {word[:-1] + "ing", word + "d"}
    if re.fullmatch(r"[^aeiou]*[aeiou][^aeiouwxy]", word):
        return {word + word[-1] + "ing", word + word[-1] + "ed"}
    past = word[:-1] + "ied" if re.search(r"[^aeiou]y$", word) else word + "ed"
    return {word + "ing", past}
