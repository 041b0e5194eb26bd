"""Error analysis on captions whose mistakes are known, and the lexicon's own rules."""

from __future__ import annotations

import json

import pytest
from captions.written_captions import CANDIDATES, REFERENCES

from tarazu.captions.evaluation.concepts.lexicon import forms, load
from tarazu.captions.evaluation.concepts.nouns import NOUNS
from tarazu.captions.evaluation.error_analysis import (
    analyse,
    compare,
    diversity,
    judge,
    lexicon,
    repeats,
)
from tarazu.captions.metrics.ptb_tokenizer import ptb_like
from tarazu.errors import UserError


def found(candidate: str, *references: str) -> dict[str, list[str]]:
    return {part: sorted(concepts) for part, concepts in judge(candidate, references).items()}


def test_invented_and_missed():
    assert found(
        "A cat on a bench .",
        "A dog sits on a bench .",
        "A dog is on the bench .",
        "Some brown dog .",
    ) == {
        "right": ["bench"],
        "hallucinated": ["cat"],
        "recalled": ["bench"],
        "missed": ["dog"],  # "brown" and "sit" are one person's words only
    }


def test_synonyms_plurals_and_verb_endings_are_one_concept():
    assert (
        found("kids ran by bikes", "A child runs past a bicycle", "children running by bicycles")[
            "hallucinated"
        ]
        == []
    )
    assert found("a puppy hugged toys", "dogs are hugging a toy")["right"] == ["dog", "hug", "toy"]
    assert found("women carried babies", "a lady carries a baby")["hallucinated"] == []


def test_the_general_word_is_right_but_the_special_one_is_a_claim():
    assert found("a person", "a man", "a man")["hallucinated"] == []
    assert found("a person", "a man", "a man")["missed"] == ["man"]
    assert found("a man", "a person", "a person") == {
        "right": [],
        "hallucinated": ["man"],
        "recalled": ["person"],
        "missed": [],
    }


def test_a_compound_is_its_parts_together():
    assert found("a cyclist", "a man on a bike")["hallucinated"] == []
    assert found("a man riding a bike", "a cyclist", "a cyclist passes")["missed"] == []
    assert found("a surfer", "a man by the sea")["hallucinated"] == ["surfer"]


def test_colours_counts_and_relations():
    parts = found(
        "Three black dogs in front of a red car",
        "Two black dogs behind a red car",
        "Two dogs next to a car",
    )
    assert parts["hallucinated"] == ["in_front_of", "three"]
    assert parts["missed"] == ["two"]
    assert found("a white hot dog", "a white dog")["hallucinated"] == [
        "food"
    ]  # a phrase is found before its parts


def test_drawn_scenes_are_understood():
    parts = found(
        "Two red circles to the left of a star.",
        "A star to the right of two red circles.",
        "Two red circles.",
    )
    assert parts["right"] == ["circle", "red", "star", "two"]
    assert parts["hallucinated"] == ["left_of"]  # the mirrored relation is another concept


def test_every_word_names_one_concept_and_every_implication_exists():
    words = load()  # raises where a word stands in two lines
    assert set().union(*words.implied.values()) <= words.kind.keys()
    assert set(words.kind.values()) == {*NOUNS, "colours", "counts", "relations", "actions"}
    assert len(words.kind) > 300
    assert forms("ice_skate", "verb") == {
        ("ice", "skate"), ("ice", "skates"), ("ice", "skating"), ("ice", "skated"),
    }  # fmt: skip
    assert ("running",) in forms("run", "verb")
    assert ("playing",) in forms("play", "verb")
    assert ("carried",) in forms("carry", "verb")


def test_the_lexicon_sees_most_of_what_captions_say():
    captions = [caption for captions in REFERENCES.values() for caption in captions]
    assert all(lexicon().mentions(ptb_like(caption)) for caption in captions)


def test_the_whole_analysis():
    result = analyse(CANDIDATES, REFERENCES, ["Two dogs run on the beach ."])
    json.dumps(result, allow_nan=False)
    assert result["per_image"]["cafe.jpg"] == {
        "hallucinated": ["man"],
        "missed": ["book", "read", "woman"],
    }
    assert ["skateboard", 1] in result["hallucinated"]
    assert result["worst"][0] == "pool.jpg"
    assert result["best"][0] == "cafe.jpg"
    assert set(result["categories"]) == {"objects", "colours", "counts", "relations", "actions"}
    for figures in result["categories"].values():
        assert figures["precision"] is None or 0 <= figures["precision"] <= 1
    assert set(result["objects_by_kind"]) == set(NOUNS)
    mentions = sum(kind["mentions"] for kind in result["objects_by_kind"].values())
    assert mentions == result["categories"]["objects"]["mentions"]
    assert result["diversity"]["novel_fraction"] == pytest.approx(5 / 6)
    assert result["diversity"]["repeated_phrase_fraction"] == pytest.approx(1 / 6)


def test_references_as_candidates_invent_nothing():
    first = {image: captions[0] for image, captions in REFERENCES.items()}
    result = analyse(first, REFERENCES)
    assert result["hallucinated"] == []
    assert result["categories"]["objects"]["precision"] == 1


def test_diversity_and_repeats():
    assert diversity(["A dog .", "a dog", "a cat runs"]) == {
        "vocabulary_used": 4,
        "novel_fraction": None,
        "distinct_fraction": pytest.approx(2 / 3),
        "words_mean": pytest.approx(7 / 3),
        "repeated_phrase_fraction": 0,
    }
    assert repeats(["a", "dog", "dog"])
    assert repeats(["on", "a", "skateboard", "on", "a", "skateboard"])
    assert not repeats(["a", "dog", "and", "a", "cat"])


def test_models_on_the_same_images():
    better = {**CANDIDATES, "pool.jpg": "a boy jumps into the pool"}
    result = compare({"a": analyse(CANDIDATES, REFERENCES), "b": analyse(better, REFERENCES)})
    assert result["fewest"] == {"a": 0, "b": 1}
    assert result["ties"] == len(CANDIDATES) - 1
    assert result["errors"]["a"]["hallucinated_alone"] == 1  # the skateboard
    assert result["errors"]["b"]["hallucinated_alone"] == 0
    assert ["man", 1] in result["shared"]["hallucinated"]  # both see a man in the cafe
    precision = {
        name: figures["precision"] for name, figures in result["categories"]["objects"].items()
    }
    assert precision["b"] > precision["a"]
    one = {"pool.jpg": CANDIDATES["pool.jpg"]}
    with pytest.raises(UserError, match="different images"):
        compare({"a": analyse(one, REFERENCES), "b": analyse(CANDIDATES, REFERENCES)})


def test_captions_without_references_are_refused():
    with pytest.raises(UserError, match="moon.jpg"):
        analyse({"moon.jpg": "a moon"}, REFERENCES)
