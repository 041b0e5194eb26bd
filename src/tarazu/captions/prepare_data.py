"""Prepare a recipe's captions and images for training, and describe them in data.json.

    source ─▶ collection ─▶ subsample ─▶ hash images ─▶ split by image ─▶ vocabulary ─▶ token ids

Hashing reads every image once: unreadable ones are dropped, and duplicates are found, which stay in
one split. The vocabulary comes from the training split alone.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import torch

from tarazu.captions.data import (
    duplicates,
    flickr8k,
    hub_dataset,
    statistics,
    synthetic_scenes,
)
from tarazu.captions.data.duplicates import ImageHashes
from tarazu.captions.data.flickr8k import Collection
from tarazu.captions.data.split import split_images, subsample
from tarazu.captions.data.vocabulary import SPECIALS, Vocabulary, clean
from tarazu.captions.dataset import CaptionData
from tarazu.captions.encoder import pretrained
from tarazu.captions.settings import CaptionsRecipe, DataSettings, SplitFractions
from tarazu.engine.progress import ProgressBar, log
from tarazu.errors import UserError
from tarazu.storage.atomic_io import write_atomic, write_json
from tarazu.storage.cache import cache_dir
from tarazu.storage.run_folder import StudyDir

NUM_EXAMPLES = 5  # random training images that data.json shows
MAX_DUPLICATES = 200  # pairs that data.json lists


def prepare(recipe: CaptionsRecipe, folder: StudyDir, device: torch.device) -> CaptionData:
    """Read a recipe's data and write data.json, vocabulary.json and model.json.

    Args:
        recipe: what to read and how.
        folder: the study's.
        device: where tensors are wanted.

    Raises:
        UserError: the data or the encoder's weights are missing or unusable.
    """
    settings, encoder = recipe.data, pretrained.load(recipe.encoder)
    collection = read(settings)
    subsample(collection, settings)
    hashes, pairs = scan_images(collection, settings)
    names = split_images(collection, pairs, settings)
    captions = {name: collection.captions[name] for images in names.values() for name in images}
    words = {name: [clean(text) for text in texts] for name, texts in captions.items()}
    vocabulary = _build_vocabulary(names["train"], words, settings)
    tokens = {
        split: np.array(
            [vocabulary.encode(line) for name in images for line in words[name]], dtype=np.int64
        )
        for split, images in names.items()
    }
    index_of = {name: index for index, name in enumerate(captions)}
    image_indices = {
        split: np.array([index_of[name] for name in images for _ in words[name]], dtype=np.int64)
        for split, images in names.items()
    }
    data = CaptionData(
        names=names,
        captions=captions,
        vocabulary=vocabulary,
        tokens=tokens,
        image_indices=image_indices,
        collection=collection,
        hashes=hashes,
        encoder=encoder,
        precision=recipe.encoder.precision,
        num_augmentations=settings.num_augmentations,
        min_crop_area=settings.min_crop_area,
        captions_per_group=settings.captions_per_group,
        device=device,
        folder=folder,
    )
    _write_summary(data, settings, pairs)
    return data


def read(settings: DataSettings) -> Collection:
    """Read the collection that a recipe names: synthetic, local, or from the Hub.

    Raises:
        UserError: the collection is missing or unusable.
    """
    if settings.source == "synthetic":
        folder = cache_dir() / "synthetic" / f"{settings.scenes}"
        collection = flickr8k.read(synthetic_scenes.write(folder, settings.scenes))
        collection.layout = "synthetic"
        return collection
    if not Path(settings.source).exists() and hub_dataset.is_hub_name(settings.source):
        return hub_dataset.read(settings.source, cache_dir() / "hub")
    caption_file = Path(settings.captions) if settings.captions else None
    return flickr8k.read(Path(settings.source), caption_file)


def scan_images(collection: Collection, settings: DataSettings) -> tuple[ImageHashes, list[dict]]:
    """Read every image once: drop the unreadable ones, and find duplicates.

    Args:
        collection: its captions lose the unreadable images, its problems name them.
        settings: the recipe's `data`.

    Returns:
        The hashes, and pairs of duplicates as of `duplicates.find_duplicates`.

    Raises:
        UserError: no image can be read.
    """
    key = hashlib.sha256(str(Path(settings.source).resolve()).encode()).hexdigest()[:16]
    with ProgressBar("reading images") as bar:
        hashes = duplicates.hash_images(
            collection.images,
            sorted(collection.captions),
            cache_dir() / "hashes" / key,
            lambda done, total: bar.at(done / total, f"{done} of {total}"),
        )
    unreadable = [f"{name}: {reason}" for name, reason in hashes.unreadable.items()]
    collection.add_problem("unreadable image files", "dropped", unreadable)
    for name in hashes.unreadable:
        del collection.captions[name]
    if not collection.captions:
        raise UserError("no image can be read", location="data.source")
    return hashes, duplicates.find_duplicates(hashes, settings.max_hash_distance)


def _build_vocabulary(
    train_names: list[str], words: dict[str, list[list[str]]], settings: DataSettings
) -> Vocabulary:
    lines = (line for name in train_names for line in words[name])
    vocabulary = Vocabulary.build(lines, settings.min_count, settings.max_length)
    if len(vocabulary) == len(SPECIALS):
        raise UserError(
            f"no word is in the training captions {settings.min_count} times",
            location="data.min_count",
            hint="a smaller min_count, or more images",
        )
    return vocabulary


def _write_summary(data: CaptionData, settings: DataSettings, pairs: list[dict]) -> None:
    """Write data.json, vocabulary.json and model.json."""
    train_names = data.names["train"]
    num_examples = min(NUM_EXAMPLES, len(train_names))
    rng = np.random.default_rng(0)
    examples = rng.choice(train_names, num_examples, replace=False).tolist()
    for name in examples:
        data.save_thumbnail(name)
    summary = {
        "source": settings.source,
        "sha256": _digest(data),
        "note": _note(data, settings),
        "layout": data.collection.layout,
        "split_by": _split_by(settings),
        "splits": {
            split: {"images": len(images), "captions": data.size(split)}
            for split, images in data.names.items()
        },
        "structure": statistics.structure(data.captions, data.names, data.vocabulary),
        "vocabulary_specials": list(SPECIALS),
        "problems": data.collection.problems,
        "duplicates": pairs[:MAX_DUPLICATES],
        "examples": statistics.examples(data.captions, examples, data.vocabulary),
    }
    write_json(data.folder.path / "data.json", summary)
    write_atomic(data.folder.path / "vocabulary.json", data.vocabulary.to_json().encode())
    write_json(data.folder.path / "model.json", {"encoder": data.encoder.summary()})
    num_captions = sum(map(len, data.tokens.values()))
    num_dropped = sum(problem["count"] for problem in data.collection.problems)
    log(
        f"{len(data.all_names)} images, {num_captions} captions, {len(data.vocabulary)} words; "
        f"{num_dropped} problems"
    )


def _digest(data: CaptionData) -> str:
    """A hash that changes with any image, caption or split in use."""
    tree = {
        split: [[name, data.hashes.sha256[name], data.captions[name]] for name in images]
        for split, images in data.names.items()
    }
    return hashlib.sha256(json.dumps(tree).encode()).hexdigest()


def _split_by(settings: DataSettings) -> str:
    split = settings.split
    if isinstance(split, SplitFractions):
        fractions = f"{split.train:g}/{split.validation:g}/{split.test:g}"
        return f"image, {fractions}, seed {settings.split_seed}; copies stay together"
    return f"image, {split} lists"


def _note(data: CaptionData, settings: DataSettings) -> str | None:
    if data.collection.layout == "synthetic":
        return (
            "synthetic scenes: they show that everything works, and say nothing about photographs"
        )
    return f"only {len(data.all_names)} images were used (data.images)" if settings.images else None
