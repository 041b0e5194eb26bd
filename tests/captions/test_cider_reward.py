"""The reward on the device against the scorer's CIDEr and BLEU."""

import math
import random

import pytest
import torch

from tarazu.captions.data.vocabulary import Vocabulary
from tarazu.captions.metrics.bleu import References
from tarazu.captions.metrics.cider import Cider
from tarazu.captions.training.cider_reward import CiderReward

END = "endofsentence"
LETTERS = "abcdefghij"


def caption(rng, max_words=12):
    """Random words, often repeated."""
    return [rng.choice(LETTERS) + rng.choice(LETTERS[:3]) for _ in range(rng.randint(0, max_words))]


@pytest.fixture(scope="module")
def world():
    """Thirty images with one to five captions, some of whose words the vocabulary lacks."""
    rng = random.Random(0)
    references = [[caption(rng) for _ in range(rng.randint(1, 5))] for _ in range(30)]
    vocabulary = Vocabulary.build([line for lines in references for line in lines], 4, 12)
    cider = Cider(
        {str(i): [" ".join([*line, END]) for line in lines] for i, lines in enumerate(references)}
    )
    reward = CiderReward(references, vocabulary, torch.device("cpu"))
    return rng, references, vocabulary, cider, reward


def test_the_reward_equals_the_scorers_cider(world):
    rng, references, vocabulary, cider, reward = world
    images = [rng.randrange(30) for _ in range(200)]
    lines = [[w for w in caption(rng) if w in vocabulary.ids] for _ in images]
    for i in range(0, 200, 4):  # some captions near a reference
        lines[i] = [w for w in references[images[i]][0] if w in vocabulary.ids]
    texts = [" ".join([*line, END]) for line in lines]
    expected = cider.scores_of_pairs([str(i) for i in images], texts)
    tokens = torch.tensor([vocabulary.encode(line) for line in lines])
    assert expected.max() > 3 and (expected == 0).any()
    rewards = reward(torch.tensor(images), tokens)
    torch.testing.assert_close(rewards, torch.tensor(expected).float(), atol=1e-4, rtol=1e-4)


def test_the_bleu_term_equals_the_scorers_with_add_one_smoothing_above_unigrams(world):
    rng, references, vocabulary, _, reward = world
    images = [rng.randrange(30) for _ in range(100)]
    lines = [
        [w for w in (references[i][0] if n % 3 else caption(rng)) if w in vocabulary.ids]
        for n, i in enumerate(images)
    ]
    tokens, ids = torch.tensor([vocabulary.encode(line) for line in lines]), torch.tensor(images)
    bleu_terms = (reward(ids, tokens, 2.0) - reward(ids, tokens)).tolist()
    for image, line, bleu_term in zip(images, lines, bleu_terms, strict=True):
        image_references = References([[*reference, END] for reference in references[image]])
        length, closest, *counts = image_references.counts([*line, END])
        precisions = [(counts[n] + (n > 0)) / (counts[4 + n] + (n > 0)) for n in range(4)]
        expected = math.prod(precisions) ** 0.25 * min(1.0, math.exp(1 - closest / length))
        assert bleu_term == pytest.approx(2 * expected, abs=1e-3), (line, references[image])


def test_a_repeated_word_is_clipped_and_a_missing_end_costs(world):
    _, references, vocabulary, _, reward = world
    image, line = next(
        (image, line)
        for image, lines in enumerate(references)
        for line in lines
        if len(line) > 5 and all(w in vocabulary.ids for w in line)
    )
    full, repeated, unfinished = (
        torch.tensor([vocabulary.encode(words)]) for words in (line, line[:1] * 6, line)
    )
    unfinished[unfinished == 2] = 0
    scores = [
        float(reward(torch.tensor([image]), tokens)) for tokens in (full, unfinished, repeated)
    ]
    assert scores[0] > scores[1] > scores[2]
