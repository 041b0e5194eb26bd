"""CIDEr equals pycocoevalcap's `Cider`, image by image and for any list of pairs."""

from __future__ import annotations

import numpy as np
import pytest
from captions.written_captions import CANDIDATES, REFERENCES, SETS, tokenised, tokenised_references

from tarazu.captions.metrics.cider import Cider
from tarazu.errors import UserError

# pycocoevalcap 1.2, Cider().compute_score(references, candidates) on the tokens of `ptb_like`.
COCO_IMAGES = [
    1.0106204,
    0.94419797,
    1.00732593,
    1.23852881,
    1.82530732,
    0.35888028,
]  # "written", in its order
COCO_MEAN = {"written": 1.0641434525829838, "salad-0": 0.310703083116934}


def test_equals_stored_scores_of_the_coco_scorer():
    assert Cider(REFERENCES).scores(CANDIDATES) == pytest.approx(COCO_IMAGES, abs=1e-4)
    for name, mean in COCO_MEAN.items():
        candidates, references = SETS[name]
        assert Cider(references).scores(candidates).mean() == pytest.approx(mean, abs=1e-4)


@pytest.mark.parametrize("name", SETS)
def test_equals_the_coco_scorer(name):
    scorer = pytest.importorskip("pycocoevalcap.cider.cider").Cider()
    candidates, references = SETS[name]
    mean, images = scorer.compute_score(tokenised_references(references), tokenised(candidates))
    ours = Cider(references).scores(candidates)
    assert ours == pytest.approx(images, abs=1e-9)
    assert ours.mean() == pytest.approx(mean, abs=1e-9)


def test_several_captions_of_an_image_use_the_same_frequencies():
    cider = Cider(REFERENCES)
    alone = dict(zip(CANDIDATES, cider.scores(CANDIDATES), strict=True))
    scores = cider.scores_of_pairs(
        ["pool.jpg", "beach.jpg", "pool.jpg"],
        [CANDIDATES["pool.jpg"], CANDIDATES["beach.jpg"], "x"],
    )
    assert scores == pytest.approx([alone["pool.jpg"], alone["beach.jpg"], 0.0])


def test_a_reference_beats_another_images_caption():
    cider = Cider(REFERENCES)
    own, other = cider.scores_of_pairs(
        ["cafe.jpg"] * 2, [REFERENCES["cafe.jpg"][2], REFERENCES["snow.jpg"][2]]
    )
    assert own > 10 * other


def test_empty_captions_and_unknown_images():
    cider = Cider(REFERENCES)
    assert np.array_equal(cider.scores_of_pairs(["cafe.jpg", "cafe.jpg"], ["", " . "]), [0, 0])
    with pytest.raises(UserError, match="moon.jpg"):
        cider.scores({"moon.jpg": "a moon"})
