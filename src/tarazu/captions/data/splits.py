"""Train, validation and test by image: the official lists, Karpathy's, or seeded shares; copies stay in one split."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tarazu.captions.data import duplicates, flickr8k
from tarazu.captions.data.flickr8k import Collection
from tarazu.captions.settings import DataSettings, SplitFractions
from tarazu.errors import UserError

SPLITS = ("train", "validation", "test")


def subsample(collection: Collection, settings: DataSettings) -> None:
    """Leaves `data.images` images in the collection, before any picture is read: a sample by the split's seed, or the first
    of each list in the lists' own proportions, of each two at least."""
    known, most = collection.captions, settings.images
    if most is None or most >= len(known):
        return
    if isinstance(settings.split, SplitFractions):
        names = sorted(known)
        kept = {
            names[i]
            for i in np.random.default_rng(settings.split_seed).permutation(len(names))[:most]
        }
    else:
        lists = {
            name: [one for one in images if one in known]
            for name, images in _lists(collection, settings).items()
        }
        share = most / max(1, sum(map(len, lists.values())))
        collection.lists = {
            name: images[: max(2, round(share * len(images)))] for name, images in lists.items()
        }
        collection.lists_truncated = True
        kept = {one for images in collection.lists.values() for one in images}
    collection.captions = {name: texts for name, texts in known.items() if name in kept}


def split_images(
    collection: Collection, copies: list[dict], settings: DataSettings
) -> dict[str, list[str]]:
    """Names by split. Notes in `collection.problems` what is in no list, missing, or dropped as a copy.

    Raises `UserError` when a split would be empty or a list names an image twice.
    """
    if isinstance(settings.split, SplitFractions):
        found = split_by_fractions(
            duplicates.connected_components(collection.captions, copies),
            settings.split,
            settings.split_seed,
        )
    else:
        found = split_by_lists(collection, copies, _lists(collection, settings))
    for name, images in found.items():
        if not images:
            raise UserError(
                f"the {name} split is empty",
                location="data.split",
                hint="more images, or other shares",
            )
    return found


def split_by_fractions(
    sets: list[list[str]], shares: SplitFractions, seed: int
) -> dict[str, list[str]]:
    """Whole sets of copies, shuffled by the seed, dealt out until each split has its share of the images."""
    total = sum(len(group) for group in sets)
    wanted = {"test": shares.test * total, "validation": shares.validation * total}
    found: dict[str, list[str]] = {name: [] for name in SPLITS}
    for i in np.random.default_rng(seed).permutation(len(sets)):
        group = sets[i]
        place = next(
            (name for name, most in wanted.items() if len(found[name]) + len(group) <= round(most)),
            "train",
        )
        found[place] += group
    return {name: sorted(images) for name, images in found.items()}


def split_by_lists(
    collection: Collection, copies: list[dict], lists: dict[str, list[str]]
) -> dict[str, list[str]]:
    """A published split, kept as it is, except that train loses its copies of validation and test images."""
    named = [name for images in lists.values() for name in images]
    in_a_list = set(named)
    if len(in_a_list) != len(named):
        twice = sorted({name for name in named if named.count(name) > 1})[:3]
        raise UserError(
            f"in two splits at once: {', '.join(twice)}",
            location="data.split",
            hint="repair the split lists",
        )
    known = collection.captions
    collection.add_problem(
        "images in no split list (not used)",
        "dropped",
        [name for name in known if name not in in_a_list],
    )
    collection.add_problem(
        "in a split list, but without image or captions",
        "dropped",
        [name for name in named if name not in known],
    )
    found = {name: [image for image in lists[name] if image in known] for name in SPLITS}
    for loser, winners in (("train", ("validation", "test")), ("validation", ("test",))):
        kept = {image for name in winners for image in found[name]}
        lost = {
            pair[a] for pair in copies for a, b in (("a", "b"), ("b", "a")) if pair[b] in kept
        } & set(found[loser])
        collection.add_problem(
            f"{loser} images that are copies of {' or '.join(winners)} images",
            "dropped",
            sorted(lost),
        )
        found[loser] = [image for image in found[loser] if image not in lost]
    return found


def _lists(collection: Collection, settings: DataSettings) -> dict[str, list[str]]:
    if collection.lists_truncated:
        return collection.lists
    folder = Path(settings.source)
    folder = folder if folder.is_dir() else folder.parent
    if settings.split == "karpathy":
        given = (
            Path(settings.captions)
            if settings.captions and collection.layout == "karpathy"
            else None
        )
        return (
            collection.lists
            if collection.layout == "karpathy"
            else flickr8k.karpathy_lists(folder, given)
        )
    if collection.layout == "karpathy" or not collection.lists:
        wanted = ", ".join(flickr8k.LISTS.values())
        raise UserError(
            "the official split lists are not here",
            location=str(folder),
            hint=f"put {wanted} there, or use shares: split: {{train: 0.8, validation: 0.1, test: 0.1}}",
        )
    return collection.lists
