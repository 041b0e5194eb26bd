"""Rewards on the device against the scorer's CIDEr."""

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


def sentence(dice, most=12):
    return [dice.choice(LETTERS) + dice.choice(LETTERS[:3]) for _ in range(dice.randint(0, most))]


@pytest.fixture(scope="module")
def world():
    """Thirty images with one to five captions, of which some words are too rare for the vocabulary."""
    dice = random.Random(0)
    references = [[sentence(dice) for _ in range(dice.randint(1, 5))] for _ in range(30)]
    words = Vocabulary.build([line for lines in references for line in lines], 4, 12)
    cider = Cider(
        {str(i): [" ".join([*line, END]) for line in lines] for i, lines in enumerate(references)}
    )
    return dice, references, words, cider, CiderReward(references, words, torch.device("cpu"))


def test_rewards_are_the_scorers_cider(world):
    dice, references, words, cider, rewards = world
    images = [dice.randrange(30) for _ in range(200)]
    said = [[w for w in sentence(dice) if w in words.ids] for _ in images]
    for place in range(0, 200, 4):  # near ones too
        said[place] = [w for w in references[images[place]][0] if w in words.ids]
    wanted = cider.scores_of_pairs(
        [str(i) for i in images], [" ".join([*line, END]) for line in said]
    )
    found = rewards(torch.tensor(images), torch.tensor([words.encode(line) for line in said]))
    assert wanted.max() > 3 and (wanted == 0).any()
    torch.testing.assert_close(found, torch.tensor(wanted).float(), atol=1e-4, rtol=1e-4)


def test_bleu_beside_it_is_the_scorers_with_one_added_above_single_words(world):
    dice, references, words, _, rewards = world
    images = [dice.randrange(30) for _ in range(100)]
    said = [
        [w for w in (references[i][0] if n % 3 else sentence(dice)) if w in words.ids]
        for n, i in enumerate(images)
    ]
    lines = torch.tensor([words.encode(line) for line in said])
    found = rewards(torch.tensor(images), lines, 2.0) - rewards(torch.tensor(images), lines)
    for image, line, value in zip(images, said, found.tolist(), strict=True):
        counts = References([[*reference, END] for reference in references[image]]).counts(
            [*line, END]
        )
        length, nearest, *rest = counts
        shares = [(rest[n] + (n > 0)) / (rest[4 + n] + (n > 0)) for n in range(4)]
        wanted = math.prod(shares) ** 0.25 * min(1.0, math.exp(1 - nearest / length))
        assert value == pytest.approx(2 * wanted, abs=1e-3), (line, references[image])


def test_a_repeated_word_is_clipped_and_a_missing_end_costs(world):
    _, references, words, _, rewards = world
    line = next(
        line
        for lines in references
        for line in lines
        if len(line) > 5 and all(w in words.ids for w in line)
    )
    image = next(i for i, lines in enumerate(references) if line in lines)
    whole, again, cut = (torch.tensor([words.encode(said)]) for said in (line, line[:1] * 6, line))
    cut[cut == 2] = 0
    best, worst, unfinished = (
        float(rewards(torch.tensor([image]), one)) for one in (whole, again, cut)
    )
    assert best > unfinished > worst
