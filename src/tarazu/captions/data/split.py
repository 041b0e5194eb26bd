"""Split images into train, validation and test: published lists, or seeded fractions.

The unit is the image: all of its captions go to one split. Duplicates (see `duplicates`) never
end up in two splits, because a model could then be tested on an image that it was trained on:

* by fractions, a group of duplicates goes to one split as a whole;
* by lists, the published test set stays as it is, and train loses its duplicates of test images.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tarazu.captions.data import duplicates, flickr8k
from tarazu.captions.data.flickr8k import Collection
from tarazu.captions.settings import DataSettings, SplitFractions
from tarazu.errors import UserError

SPLITS = ("train", "validation", "test")


def subsample(collection: Collection, settings: DataSettings) -> None:
    """Keep `data.images` images of the collection, before any image is read.

    With split fractions: a random sample by the split's seed. With lists: the beginning of each
    list, in proportion to its length, at least two images each.

    Raises:
        UserError: the split lists are missing.
    """
    captions, max_images = collection.captions, settings.images
    if max_images is None or max_images >= len(captions):
        return
    if isinstance(settings.split, SplitFractions):
        names = sorted(captions)
        order = np.random.default_rng(settings.split_seed).permutation(len(names))
        kept = {names[i] for i in order[:max_images]}
    else:
        lists = {
            split: [name for name in names if name in captions]
            for split, names in _lists(collection, settings).items()
        }
        fraction = max_images / max(1, sum(map(len, lists.values())))
        collection.lists = {
            split: names[: max(2, round(fraction * len(names)))] for split, names in lists.items()
        }
        collection.lists_truncated = True
        kept = {name for names in collection.lists.values() for name in names}
    collection.captions = {name: texts for name, texts in captions.items() if name in kept}


def split_images(
    collection: Collection, pairs: list[dict], settings: DataSettings
) -> dict[str, list[str]]:
    """Split a collection as the recipe says.

    Notes in `collection.problems` which images are in no list, missing, or dropped as duplicates.

    Args:
        collection: the images.
        pairs: of duplicates, as of `duplicates.find_duplicates`.
        settings: the recipe's `data`.

    Returns:
        Image names by split.

    Raises:
        UserError: a split would be empty, lists are missing, or an image is in two lists.
    """
    if isinstance(settings.split, SplitFractions):
        groups = duplicates.connected_components(collection.captions, pairs)
        names = split_by_fractions(groups, settings.split, settings.split_seed)
    else:
        names = split_by_lists(collection, pairs, _lists(collection, settings))
    for split, images in names.items():
        if not images:
            raise UserError(
                f"the {split} split is empty",
                location="data.split",
                hint="more images, or other fractions",
            )
    return names


def split_by_fractions(
    groups: list[list[str]], fractions: SplitFractions, seed: int
) -> dict[str, list[str]]:
    """Shuffle groups of duplicates and fill test, then validation, then train.

    Args:
        groups: the images, each in one group.
        fractions: of the images, by split.
        seed: of the shuffle.

    Returns:
        Image names by split, sorted.
    """
    total = sum(len(group) for group in groups)
    sizes = {"test": fractions.test * total, "validation": fractions.validation * total}
    names: dict[str, list[str]] = {split: [] for split in SPLITS}
    for i in np.random.default_rng(seed).permutation(len(groups)):
        group = groups[i]
        fitting = (
            split for split, size in sizes.items() if len(names[split]) + len(group) <= round(size)
        )
        names[next(fitting, "train")] += group
    return {split: sorted(images) for split, images in names.items()}


def split_by_lists(
    collection: Collection, pairs: list[dict], lists: dict[str, list[str]]
) -> dict[str, list[str]]:
    """Follow published lists, without duplicates between them.

    Args:
        collection: the images; problems are noted in it.
        pairs: of duplicates.
        lists: image names by split.

    Returns:
        Image names by split, in the lists' order.

    Raises:
        UserError: an image is in two lists.
    """
    listed = [name for names in lists.values() for name in names]
    listed_once = set(listed)
    if len(listed_once) != len(listed):
        repeated = sorted({name for name in listed if listed.count(name) > 1})[:3]
        raise UserError(
            f"in two splits at once: {', '.join(repeated)}",
            location="data.split",
            hint="repair the split lists",
        )
    captions = collection.captions
    unlisted = [name for name in captions if name not in listed_once]
    missing = [name for name in listed if name not in captions]
    collection.add_problem("images in no split list (not used)", "dropped", unlisted)
    collection.add_problem("in a split list, but without image or captions", "dropped", missing)
    names = {split: [name for name in lists[split] if name in captions] for split in SPLITS}
    # Validation and test images are protected: the other split drops its copies of them.
    for split, protected in (("train", ("validation", "test")), ("validation", ("test",))):
        kept = {name for other in protected for name in names[other]}
        copies = {pair["a"] for pair in pairs if pair["b"] in kept}
        copies |= {pair["b"] for pair in pairs if pair["a"] in kept}
        dropped = copies & set(names[split])
        reason = f"{split} images that are copies of {' or '.join(protected)} images"
        collection.add_problem(reason, "dropped", sorted(dropped))
        names[split] = [name for name in names[split] if name not in dropped]
    return names


def _lists(collection: Collection, settings: DataSettings) -> dict[str, list[str]]:
    """The split lists that the recipe asks for."""
    if collection.lists_truncated:
        return collection.lists
    source = Path(settings.source)
    folder = source if source.is_dir() else source.parent
    from_karpathy = collection.layout == "karpathy"
    if settings.split == "karpathy":
        return collection.lists if from_karpathy else flickr8k.karpathy_lists(folder)
    if from_karpathy or not collection.lists:
        raise UserError(
            "the official split lists are not here",
            location=str(folder),
            hint=f"put {', '.join(flickr8k.LISTS.values())} there, or use fractions: "
            "split: {train: 0.8, validation: 0.1, test: 0.1}",
        )
    return collection.lists
