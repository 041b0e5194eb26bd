"""What the error analysis can see: the concepts of everyday photographs, and the words that name them.

One line is one concept: `name: other words > what it implies`. The name is itself a word; regular plurals (nouns) and
verb endings (actions) are added, irregular forms stand in the lines. A word names one concept only; where English gives
it two meanings ("park", "watch", "orange"), the one that captions of photographs mean most is kept. `man > person` says
that who mentions a man mentions a person: "a person" is right where the references say "a man", not the other way round.
A concept that implies two others is both together: a man with a bicycle is as good as `cyclist > person cycling`.
A phrase of several words is written with underscores and is found before its parts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from tarazu.captions.evaluation.concepts.nouns import NOUNS

COLOURS = """
red: maroon
blue:
green:
yellow:
orange:
white:
black:
brown: tan
pink:
purple:
grey: gray silver
blond: blonde
beige: cream
gold: golden
colourful: colorful multicolored multi-colored rainbow
dark:
bright: neon
"""
COUNTS = """
alone: single lone
two: pair both couple
three: trio > several
four: > several
five: > several
six: > several
seven: > several
eight: > several
nine: > several
ten: > several
several: few group bunch lots numerous > many
many: crowded > several
"""
RELATIONS = """
in_front_of:
behind: in_back_of
next_to: beside near alongside nearby close_to along_side
on_top_of: atop
under: beneath below underneath
over: above
between: in_between
among: amongst surrounded_by in_the_middle_of
inside: indoors indoor
outside: outdoors outdoor
through:
around:
against:
across:
along:
into:
out_of:
towards: toward
away_from:
left_of: to_the_left_of on_the_left_of
right_of: to_the_right_of on_the_right_of
"""
ACTIONS = """
run: ran sprint jog
walk: stroll
jump: leap hop
stand: stood
sit: sat seated
lie: lay laying lying laid rest
kneel: knelt crouch squat
climb:
swim: swam swum
dive: dove
splash:
ride: rode ridden
drive: drove
fly: flew flown airborne midair
fall: fell fallen
hang: hung
lean:
play:
dance: danced
sing: sang
perform:
throw: threw thrown toss
catch: caught
kick:
hit: swat
chase:
fetch:
hold: held
carry:
pull: tug drag
push:
dig: dug
bite: biting bitten chew
eat: ate eaten
drink: drank
sleep: slept asleep nap
read:
write: wrote written
talk: speak chat
laugh: > smile
smile: grin
cry: scream yell
look: stare gaze
watch: > look
point:
reach:
kiss:
hug: embrace
fight: fought
pose:
wear: wore worn dressed
cook: grill
smoke:
work:
wait:
shake: shook
balance:
grind:
skip:
bark:
lick:
slide: slid
swing: swung
pet: stroke
cross:
float:
sail:
roll:
spin: spun twirl
sniff:
blow: blew
"""
OTHERS = {"colours": COLOURS, "counts": COUNTS, "relations": RELATIONS, "actions": ACTIONS}
INFLECTED = {**dict.fromkeys(NOUNS, "noun"), "actions": "verb"}
LONGEST_PHRASE = 4
Phrase = tuple[str, ...]


@dataclass(frozen=True)
class Lexicon:
    """Concepts by the words that name them.

    `concept` maps a word or phrase (a tuple of tokens) to its concept, `kind` a concept to its category, `implied` a
    concept to all that it implies, itself included, `together` a concept to the several that make it up.
    """

    concept: dict[Phrase, str]
    kind: dict[str, str]
    implied: dict[str, frozenset[str]]
    together: dict[str, frozenset[str]]

    def mentions(self, tokens: list[str]) -> frozenset[str]:
        """The concepts that a tokenised caption names itself, longest phrases first."""
        found, place = set(), 0
        while place < len(tokens):
            for length in range(LONGEST_PHRASE, 0, -1):
                name = self.concept.get(tuple(tokens[place : place + length]))
                if name:
                    found.add(name)
                    break
            place += length
        return frozenset(found)

    def closure(self, concepts: frozenset[str]) -> frozenset[str]:
        """`concepts`, everything that they imply, and what they make up together."""
        found = set().union(*(self.implied[concept] for concept in concepts))
        return frozenset(found | {name for name, parts in self.together.items() if parts <= found})


def load() -> Lexicon:
    """The lexicon of this file. A word that stands in two lines is a mistake, and raises `ValueError`."""
    concept: dict[Phrase, str] = {}
    kind: dict[str, str] = {}
    direct: dict[str, set[str]] = {}
    for category, text in {**NOUNS, **OTHERS}.items():
        for line in filter(None, text.splitlines()):
            name, words, implied = re.fullmatch(r"(\S+):([^>]*)(?:>(.*))?", line).groups()
            kind[name], direct[name] = category, set((implied or "").split())
            for form in {
                form
                for word in [name, *words.split()]
                for form in forms(word, INFLECTED.get(category))
            }:
                if concept.setdefault(form, name) != name:
                    raise ValueError(f"{' '.join(form)!r} names {concept[form]!r} and {name!r}")
    together = {name: frozenset(parts) for name, parts in direct.items() if len(parts) > 1}
    return Lexicon(concept, kind, {name: reachable(name, direct) for name in direct}, together)


def reachable(name: str, direct: dict[str, set[str]]) -> frozenset[str]:
    """`name` and all that it implies, in any number of steps."""
    found, waiting = set(), [name]
    while waiting:
        current = waiting.pop()
        if current not in found:
            found.add(current)
            waiting += direct[current]
    return frozenset(found)


def forms(word: str, inflected: str | None) -> set[Phrase]:
    """The word or phrase and its regular endings, on its last part."""
    *before, last = word.split("_")
    endings = {"noun": {plural(last)}, "verb": {plural(last), *verb_forms(last)}}.get(
        inflected, set()
    )
    return {(*before, form) for form in {last, *endings}}


def plural(word: str) -> str:
    """The regular plural, which is the third person of a verb as well."""
    if re.search(r"(s|x|z|ch|sh)$", word):
        return word + "es"
    return re.sub(r"y$", "ies", word) if re.search(r"[^aeiou]y$", word) else word + "s"


def verb_forms(word: str) -> set[str]:
    """The -ing and -ed forms: "hug" doubles its g, "ride" drops its e, "carry" becomes carried."""
    if re.search(r"[^aeiou]e$", word):
        return {word[:-1] + "ing", word + "d"}
    if re.fullmatch(r"[^aeiou]*[aeiou][^aeiouwxy]", word):
        return {word + word[-1] + "ing", word + word[-1] + "ed"}
    past = word[:-1] + "ied" if re.search(r"[^aeiou]y$", word) else word + "ed"
    return {word + "ing", past}
