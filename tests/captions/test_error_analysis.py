"""Error analysis on captions with known mistakes, and the rules of the lexicon."""

from __future__ import annotations

import json

import pytest
from captions.written_captions import CANDIDATES, REFERENCES

from tarazu.captions.evaluation.concepts.lexicon import forms, load
from tarazu.captions.evaluation.error_analysis import (
    analyse,
    compare,
    diversity,
    has_repetition,
    judge,
)
from tarazu.captions.metrics.ptb_tokenizer import ptb_like
from tarazu.errors import UserError


def judged(candidate: str, *references: str) -> dict[str, list[str]]:
    return {part: sorted(concepts) for part, concepts in judge(candidate, references).items()}


def test_hallucinated_and_missed_concepts():
    assert judged(
        "A cat on a bench .",
        "A dog sits on a bench .",
        "A dog is on the bench .",
        "Some brown dog .",
    ) == {
        "right": ["bench"],
        "hallucinated": ["cat"],
        "recalled": ["bench"],
        "missed": ["dog"],  # "brown" and "sit" are mentioned by one person only
    }


def test_synonyms_plurals_and_verb_endings_are_one_concept():
    assert (
        judged("kids ran by bikes", "A child runs past a bicycle", "children running by bicycles")[
            "hallucinated"
        ]
        == []
    )
    assert judged("a puppy hugged toys", "dogs are hugging a toy")["right"] == ["dog", "hug", "toy"]
    assert judged("women carried babies", "a lady carries a baby")["hallucinated"] == []


def test_the_general_word_is_right_but_the_special_one_is_a_claim():
    assert judged("a person", "a man", "a man")["hallucinated"] == []
    assert judged("a person", "a man", "a man")["missed"] == ["man"]
    assert judged("a man", "a person", "a person") == {
        "right": [],
        "hallucinated": ["man"],
        "recalled": ["person"],
        "missed": [],
    }


def test_a_compound_is_its_parts_together():
    assert judged("a cyclist", "a man on a bike")["hallucinated"] == []
    assert judged("a man riding a bike", "a cyclist", "a cyclist passes")["missed"] == []
    assert judged("a surfer", "a man by the sea")["hallucinated"] == ["surfer"]


def test_colours_counts_and_relations():
    parts = judged(
        "Three black dogs in front of a red car",
        "Two black dogs behind a red car",
        "Two dogs next to a car",
    )
    assert parts["hallucinated"] == ["in_front_of", "three"]
    assert parts["missed"] == ["two"]
    assert judged("a white hot dog", "a white dog")["hallucinated"] == [
        "food"
    ]  # a phrase is found before its parts


def test_relations_of_synthetic_scenes():
    parts = judged(
        "Two red circles to the left of a star.",
        "A star to the right of two red circles.",
        "Two red circles.",
    )
    assert parts["right"] == ["circle", "red", "star", "two"]
    assert parts["hallucinated"] == ["left_of"]  # the mirrored relation is another concept


def test_every_word_names_one_concept_and_every_implication_exists():
    lexicon = load()  # raises if a word names two concepts
    assert set().union(*lexicon.implied.values()) <= lexicon.category_of.keys()
    assert lexicon.object_categories == {
        "people", "animals", "vehicles", "sports", "places", "clothing", "things",
    }  # fmt: skip
    others = set(lexicon.category_of.values()) - lexicon.object_categories
    assert others == {"colours", "counts", "relations", "actions"}
    assert len(lexicon.category_of) > 300
    assert forms("ice_skate", "verb") == {
        ("ice", "skate"), ("ice", "skates"), ("ice", "skating"), ("ice", "skated"),
    }  # fmt: skip
    assert ("running",) in forms("run", "verb")
    assert ("playing",) in forms("play", "verb")
    assert ("carried",) in forms("carry", "verb")


def test_the_lexicon_finds_a_concept_in_every_caption():
    captions = [caption for captions in REFERENCES.values() for caption in captions]
    assert all(load().mentions(ptb_like(caption)) for caption in captions)


def test_a_full_analysis():
    result = analyse(CANDIDATES, REFERENCES, ["Two dogs run on the beach ."])
    errors = result["errors"]
    json.dumps(result, allow_nan=False)
    assert result["per_image"]["cafe.jpg"] == {
        "hallucinated": ["man"],
        "missed": ["book", "read", "woman"],
    }
    assert ["skateboard", 1] in errors["hallucinated"]
    assert errors["worst"][0] == "pool.jpg"
    assert errors["best"][0] == "cafe.jpg"
    assert set(errors["categories"]) == {"objects", "colours", "counts", "relations", "actions"}
    for rates in errors["categories"].values():
        assert rates["precision"] is None or 0 <= rates["precision"] <= 1
    assert set(errors["objects_by_kind"]) == load().object_categories
    mentions = sum(kind["mentions"] for kind in errors["objects_by_kind"].values())
    assert mentions == errors["categories"]["objects"]["mentions"]
    assert result["diversity"]["novel_fraction"] == pytest.approx(5 / 6)
    assert result["diversity"]["repeated_phrase_fraction"] == pytest.approx(1 / 6)


def test_references_as_candidates_hallucinate_nothing():
    first = {image: captions[0] for image, captions in REFERENCES.items()}
    errors = analyse(first, REFERENCES)["errors"]
    assert errors["hallucinated"] == []
    assert errors["categories"]["objects"]["precision"] == 1


def test_diversity_and_has_repetition():
    assert diversity(["A dog .", "a dog", "a cat runs"]) == {
        "vocabulary_used": 4,
        "novel_fraction": None,
        "distinct_fraction": pytest.approx(2 / 3),
        "words_mean": pytest.approx(7 / 3),
        "repeated_phrase_fraction": 0,
    }
    assert has_repetition(["a", "dog", "dog"])
    assert has_repetition(["on", "a", "skateboard", "on", "a", "skateboard"])
    assert not has_repetition(["a", "dog", "and", "a", "cat"])


def test_models_on_the_same_images():
    better = {**CANDIDATES, "pool.jpg": "a boy jumps into the pool"}
    result = compare({"a": analyse(CANDIDATES, REFERENCES), "b": analyse(better, REFERENCES)})
    assert result["fewest"] == {"a": 0, "b": 1}
    assert result["ties"] == len(CANDIDATES) - 1
    assert result["errors"]["a"]["hallucinated_alone"] == 1  # the skateboard
    assert result["errors"]["b"]["hallucinated_alone"] == 0
    assert ["man", 1] in result["shared"]["hallucinated"]  # both see a man in the cafe
    precision = {
        model: rates["precision"] for model, rates in result["categories"]["objects"].items()
    }
    assert precision["b"] > precision["a"]
    single = {"pool.jpg": CANDIDATES["pool.jpg"]}
    with pytest.raises(UserError, match="different images"):
        compare({"a": analyse(single, REFERENCES), "b": analyse(CANDIDATES, REFERENCES)})


def test_captions_without_references_are_refused():
    with pytest.raises(UserError, match="moon.jpg"):
        analyse({"moon.jpg": "a moon"}, REFERENCES)
