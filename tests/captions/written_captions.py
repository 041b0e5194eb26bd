"""Captions for the tests of the scorers: some like Flickr8k's, some of random words."""

from __future__ import annotations

import random

REFERENCES = {
    "beach.jpg": [
        "Two dogs are running along the beach .",
        "A brown dog chases a black dog on the wet sand .",
        "Dogs play at the edge of the sea .",
        "Two wet dogs race each other by the ocean .",
        "A couple of dogs run on a sandy shore in the sun .",
    ],
    "street.jpg": [
        "A man in a red jacket rides a bicycle down a busy street .",
        "A cyclist wearing red passes a yellow taxi .",
        "Someone on a bike rides next to a cab in the city .",
        "A man 's bicycle is between two cars .",
        "The biker , in red , isn't wearing a helmet !",
    ],
    "park.jpg": [
        "Three children are playing soccer on the grass .",
        "Kids kick a ball around in a park .",
        "A little girl in a white t-shirt kicks a soccer ball while two boys watch .",
        "The children chase a ball across the green field .",
        "Three kids play with a ball .",
    ],
    "snow.jpg": [
        "A snowboarder jumps high over a snowy hill .",
        "A man on a snowboard is in midair .",
        "A person in an orange coat does a trick on a snowboard .",
        "Snowboarder in the air above the snow-covered mountain .",
        "A snowboarder performs a jump .",
    ],
    "cafe.jpg": [
        "A woman with curly hair reads a book at a small table .",
        "A lady sits alone in a cafe and reads .",
        "A woman is sitting at a table with a cup of coffee and a book .",
        "The woman is reading .",
    ],
    "pool.jpg": [
        "A boy jumps into the swimming pool .",
        "A child in blue shorts splashes into a pool while others look on .",
    ],
}
CANDIDATES = {
    "beach.jpg": "two dogs run on the beach",
    "street.jpg": "a man in a red shirt is riding a bicycle on the street",
    "park.jpg": "a little girl in a white shirt is kicking a soccer ball on the green grass",
    "snow.jpg": "a snowboarder jumps in the air",
    "cafe.jpg": "a man is sitting at a table with a cup of coffee .",
    "pool.jpg": "a boy is jumping on a skateboard on a skateboard",
}


def salad(seed: int, images: int = 40) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Candidates (0 to 15 words) and references (1 to 15) of few, often repeated words."""
    draw = random.Random(seed)
    words = [f"w{i}" for i in range(25)]

    def sentence(shortest: int) -> str:
        return " ".join(draw.choices(words, weights=range(1, 26), k=draw.randint(shortest, 15)))

    references = {
        f"{i}.jpg": [sentence(1) for _ in range(draw.randint(1, 5))] for i in range(images)
    }
    return {image: sentence(0) for image in references}, references


def tokenised(captions: dict[str, str]) -> dict[str, list[str]]:
    """As the COCO scorers take candidates: one joined line per image."""
    from tarazu.captions.metrics.ptb_tokenizer import ptb_like

    return {image: [" ".join(ptb_like(caption))] for image, caption in captions.items()}


def tokenised_references(references: dict[str, list[str]]) -> dict[str, list[str]]:
    """As the COCO scorers take references."""
    from tarazu.captions.metrics.ptb_tokenizer import ptb_like

    return {
        image: [" ".join(ptb_like(caption)) for caption in captions]
        for image, captions in references.items()
    }


SETS = {"written": (CANDIDATES, REFERENCES), **{f"salad-{seed}": salad(seed) for seed in range(3)}}
