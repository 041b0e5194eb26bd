"""BLEU equals the COCO scorer's and sacrebleu's; the papers' score has no brevity penalty."""

from __future__ import annotations

import numpy as np
import pytest
from captions.written_captions import SETS, tokenised, tokenised_references

from tarazu.captions.metrics.bleu import References, bleu, brevity_penalty, mean_precisions
from tarazu.captions.metrics.ptb_tokenizer import ptb_like

# pycocoevalcap 1.2, Bleu(4).compute_score(references, candidates)[0] on the tokens of `ptb_like`.
COCO = {
    "written": [0.80952380951096, 0.6845959970539803, 0.5589213661257608, 0.4645208552712478],
    "salad-0": [
        0.4606741573020768,
        0.1376654820651882,
        4.0850913690933845e-07,
        7.285300826330745e-10,
    ],
}


def counts_of(name: str) -> np.ndarray:
    candidates, references = SETS[name]
    tokens = {
        image: [ptb_like(caption) for caption in captions] for image, captions in references.items()
    }
    return np.array(
        [References(tokens[image]).counts(ptb_like(text)) for image, text in candidates.items()]
    )


@pytest.mark.parametrize("name", COCO)
def test_equals_stored_scores_of_the_coco_scorer(name):
    assert bleu(counts_of(name).sum(0)) == pytest.approx(COCO[name], abs=1e-4)


@pytest.mark.parametrize("name", SETS)
def test_equals_the_coco_scorer_as_a_corpus_and_by_image(name):
    scorer = pytest.importorskip("pycocoevalcap.bleu.bleu").Bleu(4)
    candidates, references = SETS[name]
    corpus, images = scorer.compute_score(
        tokenised_references(references), tokenised(candidates), verbose=0
    )
    counts = counts_of(name)
    assert bleu(counts.sum(0)) == pytest.approx(corpus, abs=1e-6)
    assert bleu(counts) == pytest.approx(np.array(images).T, abs=1e-6)


@pytest.mark.parametrize("name", SETS)
def test_equals_sacrebleu_on_the_same_tokens(name):
    sacrebleu = pytest.importorskip("sacrebleu")
    candidates, references = SETS[name]
    lines = [line for (line,) in tokenised(candidates).values()]
    theirs = list(tokenised_references(references).values())
    by_position = [
        [captions[i] if i < len(captions) else None for captions in theirs] for i in range(5)
    ]
    total = counts_of(name).sum(0)
    for order in (1, 2, 4):
        metric = sacrebleu.BLEU(
            tokenize="none", force=True, smooth_method="none", max_ngram_order=order
        )
        theirs = metric.corpus_score(lines, by_position).score / 100
        # Without a match of an order, sacrebleu gives 0; the COCO constants leave up to 1e-5.
        assert bleu(total)[order - 1] == pytest.approx(theirs, abs=1e-6 if theirs else 1e-5)


def test_the_papers_score_has_no_penalty():
    nltk = pytest.importorskip("nltk.translate.bleu_score")
    candidates, references = SETS["written"]
    short = {image: " ".join(text.split()[:5]) for image, text in candidates.items()}
    tokens = {
        image: [ptb_like(caption) for caption in captions] for image, captions in references.items()
    }
    total = np.sum(
        [References(tokens[image]).counts(ptb_like(text)) for image, text in short.items()], 0
    )
    assert brevity_penalty(total) < 0.9
    theirs = nltk.corpus_bleu(list(tokens.values()), [ptb_like(text) for text in short.values()])
    assert bleu(total)[3] == pytest.approx(theirs, abs=1e-4)
    assert mean_precisions(total)[3] == pytest.approx(theirs / brevity_penalty(total), abs=1e-4)


def test_clipping_and_closest_length():
    image = References([["the", "cat"], ["a", "cat", "sat", "down"]])
    counts = image.counts(["the", "the", "the"])
    # "the" counts once. Of the lengths 2 and 4, equally near to 3, the shorter is taken.
    assert counts == [3, 2, *(1, 0, 0, 0), *(3, 2, 1, 0)]


def test_an_empty_caption_scores_nothing():
    counts = np.array(References([["a", "dog"]]).counts([]))
    assert bleu(counts).tolist() == [0, 0, 0, 0]
