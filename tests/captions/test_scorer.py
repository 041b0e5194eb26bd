"""The scorer: its result, its intervals, its errors, tokenizer, and METEOR if Java is there."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
from captions.written_captions import CANDIDATES, REFERENCES, salad, tokenised, tokenised_references

from tarazu.captions.metrics import meteor
from tarazu.captions.metrics.ptb_tokenizer import ptb_like
from tarazu.captions.metrics.scorer import Scorer, intervals, per_image, score
from tarazu.errors import TarazuError, UserError

# pycocoevalcap 1.2, Meteor().compute_score(...)[0] on the written captions, Java 17.
METEOR = 0.3490508766427455


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("A man 's dog .", "a man 's dog"),
        ("The boys' dog isn't well-trained, is it?", "the boys dog is n't well-trained is it"),
        ('"Stop!" - says the sign; it is 10:30', "stop says the sign it is 10:30"),
        ("It\u2019s a caf\u00e9 \u2013 nice\u2026", "it 's a caf\u00e9 nice"),
        ("They cannot see number 7 & #12", "they can not see number 7 & # 12"),
        ("T-shirt  \t and\nskis", "t-shirt and skis"),
        (" . ", ""),
    ],
)
def test_tokenizer(text, tokens):
    assert ptb_like(text) == tokens.split()


def test_the_parts_of_a_result_agree():
    scores = score(CANDIDATES, REFERENCES, with_meteor=False)
    assert json.loads(json.dumps(scores)) == scores
    assert scores["bleu"] == pytest.approx(
        [scores["brevity_penalty"] * b for b in scores["bleu_no_penalty"]]
    )
    assert scores["bleu"][0] > scores["bleu"][3] > 0
    assert scores["meteor"] is None
    images = per_image(CANDIDATES, REFERENCES)
    assert list(images) == list(CANDIDATES)
    assert np.mean([image["cider"] for image in images.values()]) == pytest.approx(scores["cider"])
    validation = Scorer(REFERENCES).validation_scores(CANDIDATES)
    assert validation == {
        "bleu4": pytest.approx(scores["bleu"][3]),
        "cider": pytest.approx(scores["cider"]),
    }


def test_references_of_other_images_change_nothing():
    more = {**REFERENCES, "moon.jpg": ["a white moon over two dogs"]}
    assert score(CANDIDATES, more, with_meteor=False) == score(
        CANDIDATES, REFERENCES, with_meteor=False
    )


def test_intervals_equal_those_of_resampled_corpora():
    candidates, references = salad(7, images=60)
    scorer = Scorer(references)
    counts, ciders = scorer.counts(candidates), scorer.cider.scores(candidates)
    low, high = intervals(counts, ciders)["cider"]
    rng = np.random.default_rng(99)
    means = [100 * rng.choice(ciders, len(ciders)).mean() for _ in range(2000)]
    spread = np.std(means)
    assert [low, high] == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=0.25 * spread)
    assert low < 100 * ciders.mean() < high
    assert intervals(counts, ciders) == intervals(counts, ciders)
    assert intervals(counts, ciders, seed=1) != intervals(counts, ciders)
    same = np.repeat(counts[:1], 9, axis=0)
    assert np.ptp(intervals(same, np.ones(9))["bleu4"]) == pytest.approx(0, abs=1e-9)


def test_a_thousand_resamples_of_a_thousand_images_take_about_a_second():
    counts = np.random.default_rng(0).integers(1, 12, (1000, 10)).astype(float)
    start = time.perf_counter()
    intervals(counts, counts[:, 0])
    assert time.perf_counter() - start < 3  # 0.1 s alone; other work shares the machine


def test_nothing_to_score_raises():
    with pytest.raises(UserError, match="no captions to score"):
        Scorer(REFERENCES).score({})
    with pytest.raises(UserError, match="moon.jpg"):
        score({"moon.jpg": "a moon"}, REFERENCES)
    with pytest.raises(UserError, match="moon.jpg"):
        Scorer(REFERENCES).validation_scores({"moon.jpg": "a moon"})


def test_empty_captions_are_scored_as_zero():
    scores = score(dict.fromkeys(REFERENCES, ""), REFERENCES, with_meteor=False)
    assert scores["bleu"] == [0, 0, 0, 0]
    assert scores["cider"] == scores["rouge_l"] == 0
    json.dumps(scores, allow_nan=False)


@pytest.mark.skipif(not meteor.is_available(), reason="METEOR needs Java and pycocoevalcap")
def test_meteor_equals_the_coco_scorer():
    lines = list(tokenised(CANDIDATES).values())
    theirs = list(tokenised_references(REFERENCES).values())
    corpus, images = meteor.meteor(
        [c.split() for (c,) in lines], [[r.split() for r in captions] for captions in theirs]
    )
    assert corpus == pytest.approx(METEOR, abs=1e-6)
    assert len(images) == len(lines)
    assert max(images) < 1
    # The program answers a second call.
    single, (image,) = meteor.meteor([lines[0][0].split()], [[r.split() for r in theirs[0]]])
    assert single == image == pytest.approx(images[0])


@pytest.mark.skipif(not meteor.is_available(), reason="METEOR needs Java and pycocoevalcap")
def test_a_dead_meteor_program_is_reported_and_replaced():
    question = [["a", "dog"]], [[["a", "dog", "runs"]]]
    corpus, _ = meteor.meteor(*question)
    program = meteor._program().meteor_p
    program.kill()
    program.wait()
    with pytest.raises(TarazuError, match="METEOR's Java program failed"):
        meteor.meteor(*question)
    assert meteor.meteor(*question)[0] == corpus
