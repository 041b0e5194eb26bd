"""The baselines: human scores exceed the constant caption's, and no image keeps its own caption."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from captions.written_captions import REFERENCES

from tarazu.captions.data import flickr8k
from tarazu.captions.evaluation.baselines import compute_baselines, human, medoid_caption, shuffled
from tarazu.captions.evaluation.flickr8k_text import group_by_image, read_captions
from tarazu.captions.metrics.scorer import score
from tarazu.errors import UserError

FLICKR8K = os.environ.get("TARAZU_FLICKR8K", "")  # the folder with Flickr8k's text files
CONSTANT = "a man in a blue shirt is standing in front of a crowd"


def test_human_scores_one_caption_against_the_others():
    drawn, others = human(REFERENCES)
    for image, captions in REFERENCES.items():
        assert sorted([drawn[image], *others[image]]) == sorted(captions)
    assert human({**REFERENCES, "single.jpg": ["a dog"]})[0].keys() == REFERENCES.keys()
    with pytest.raises(UserError, match="two captions"):
        human({"single.jpg": ["a dog"]})


@pytest.mark.parametrize("seed", range(20))
def test_shuffled_captions_are_of_other_images(seed):
    captions = shuffled(REFERENCES, seed)
    assert captions.keys() == REFERENCES.keys()
    assert all(caption not in REFERENCES[image] for image, caption in captions.items())


def test_the_medoid_is_nearest_to_the_other_captions():
    captions = [
        "a dog runs on the beach",
        "a dog runs on the grass",
        "a dog runs on the wet grass",
        "two men sit at a table",
    ]
    assert medoid_caption(captions) == "a dog runs on the grass"
    assert medoid_caption(["", "a dog"]) in ("", "a dog")


def test_ranking_and_form_of_the_baselines():
    training = ["a man sits on a bench", "a man in a hat sits on a bench", "two cows"]
    baselines = compute_baselines(REFERENCES, training, with_meteor=False)
    assert baselines["human"]["cider"] > baselines["constant"]["cider"] > 0
    assert baselines["human"]["bleu"][0] > baselines["shuffled"]["bleu"][0]
    assert baselines["constant"]["caption"] in training
    assert compute_baselines(REFERENCES, training, with_meteor=False) == baselines
    assert (
        compute_baselines(REFERENCES, training, "two cows", with_meteor=False)["constant"][
            "caption"
        ]
        == "two cows"
    )


@pytest.mark.skipif(
    not FLICKR8K, reason="set TARAZU_FLICKR8K to the folder with Flickr8k's text files"
)
def test_known_scores_on_flickr8k():
    folder = Path(FLICKR8K)
    references = group_by_image(read_captions(folder))
    test = {
        image: references[image]
        for image in flickr8k.read_text(folder / "Flickr_8k.testImages.txt").split()
    }
    # Measured with the COCO scorers and the Java tokenizer. "human" depends on the drawn captions.
    constant = score(dict.fromkeys(test, CONSTANT), test, with_meteor=False)
    assert constant["bleu"] == pytest.approx([42.4, 24.1, 13.8, 8.7], abs=0.1)
    assert constant["cider"] == pytest.approx(9.6, abs=0.3)
    person = score(*human(test), with_meteor=False)
    assert person["bleu"] == pytest.approx([64.8, 45.8, 31.5, 21.5], abs=1)
    assert person["cider"] == pytest.approx(83.1, abs=1.5)
