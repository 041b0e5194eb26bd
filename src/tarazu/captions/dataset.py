"""Prepared captions: read, checked, split, numbered, with the pictures' features at hand."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from tarazu.captions.data import (
    duplicates,
    flickr8k,
    hub_dataset,
    splits,
    statistics,
    synthetic_scenes,
)
from tarazu.captions.data.augmentation import SIDE_WORDS
from tarazu.captions.data.duplicates import ImageHashes
from tarazu.captions.data.flickr8k import Collection
from tarazu.captions.data.images import open_image, thumbnail_jpeg
from tarazu.captions.data.vocabulary import SPECIALS, Vocabulary, clean
from tarazu.captions.encoder import feature_cache, pretrained
from tarazu.captions.encoder.feature_cache import FeatureStore, ImageView
from tarazu.captions.encoder.pretrained import Pretrained
from tarazu.captions.settings import CaptionsRecipe, DataSettings, SplitFractions
from tarazu.captions.training.cider_reward import CiderReward
from tarazu.engine.progress import ProgressBar, log
from tarazu.errors import UserError
from tarazu.storage.atomic_io import write_atomic, write_json
from tarazu.storage.cache import cache_dir
from tarazu.storage.run_folder import StudyDir

SHOWN = 5  # random images with processed captions


@dataclass
class CaptionData:
    """What the task trains and is judged on. Rows are (image, caption) pairs, by split.

    Args:
        names: images by split.
        captions: raw captions by image, of the images in use.
        tokens: (rows, max_length + 2) per split; image_indices: the rows' images, as positions in `all_names`.
        captions_per_group: how many neighbouring rows always share a step.
        num_augmentations: how many views of a training picture there are (1: itself alone); min_crop_area: the least share that one keeps.
        scorers, baselines: what evaluation works out once for all methods.
    """

    names: dict[str, list[str]]
    captions: dict[str, list[str]]
    vocabulary: Vocabulary
    tokens: dict[str, np.ndarray]
    image_indices: dict[str, np.ndarray]
    collection: Collection
    hashes: ImageHashes
    encoder: Pretrained
    precision: str
    num_augmentations: int
    min_crop_area: float
    captions_per_group: int
    device: torch.device
    folder: StudyDir
    scorers: dict = field(default_factory=dict)
    baselines: dict = field(default_factory=dict)

    def size(self, split: str) -> int:
        return len(self.tokens[split])

    @cached_property
    def all_names(self) -> list[str]:
        return [name for images in self.names.values() for name in images]

    @cached_property
    def index_of(self) -> dict[str, int]:
        return {name: place for place, name in enumerate(self.all_names)}

    def references(self, split: str) -> dict[str, list[str]]:
        return {name: self.captions[name] for name in self.names[split]}

    @cached_property
    def feature_maps(self) -> FeatureStore:
        """The frozen encoder's features (N, P, D): of every picture, then of the training pictures' further views,
        view by view."""
        items = [ImageView(name) for name in self.all_names]
        items += [
            ImageView(name, view, self.min_crop_area)
            for view in range(1, self.num_augmentations)
            for name in self.names["train"]
        ]
        return feature_cache.load_features(
            self.encoder, self.collection.images, items, self.hashes, self.precision, self.device
        )

    def free_gpu_features(self) -> None:
        """The frozen encoder's features leave the GPU; whoever asks for them brings them back."""
        if "feature_maps" in self.__dict__:
            self.feature_maps.__dict__.pop("resident", None)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # other processes may share the GPU

    @cached_property
    def pooled_features(self) -> FeatureStore:
        """Their means over the positions (N, 1, D)."""
        return self.feature_maps.mean_pooled()

    @cached_property
    def pixels(self) -> FeatureStore:
        """The pictures themselves (N, S, S, 3), for an encoder that is trained as well."""
        return feature_cache.load_pixels(
            self.encoder,
            self.collection.images,
            [ImageView(name) for name in self.all_names],
            self.hashes,
            self.device,
        )

    @cached_property
    def cider_reward(self) -> CiderReward:
        """CIDEr against the training captions, on the device; images by their places."""
        lines = [[clean(text) for text in texts] for texts in self.references("train").values()]
        return CiderReward(lines, self.vocabulary, self.device)

    def random_view_rows(
        self, places: torch.Tensor, mentions_left_right: torch.Tensor
    ) -> torch.Tensor:
        """Rows of `feature_maps` for a random view of each training picture; never a mirrored one where `mentions_left_right`."""
        if self.num_augmentations == 1:
            return places
        view = torch.randint(self.num_augmentations, places.shape, device=places.device)
        view = torch.where(mentions_left_right, view - view % 2, view)
        further = len(self.all_names) + (view - 1) * len(self.names["train"]) + places
        return torch.where(view == 0, places, further)

    def mentions_left_right(self, tokens: torch.Tensor) -> torch.Tensor:
        """tokens (B, T) -> (B,), True where the caption says left or right."""
        numbers = [self.vocabulary.ids[word] for word in SIDE_WORDS if word in self.vocabulary.ids]
        found = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
        for number in numbers:
            found |= (tokens == number).any(1)
        return found

    def save_thumbnail(self, name: str) -> str:
        """Puts a small copy into the run folder and returns its path there."""
        relative = f"images/{statistics.jpeg_name(name)}"
        path = self.folder.path / relative
        if not path.exists():
            write_atomic(path, thumbnail_jpeg(open_image(self.collection.images.read(name), name)))
        return relative


def prepare(recipe: CaptionsRecipe, folder: StudyDir, device: torch.device) -> CaptionData:
    """Reads a recipe's data and writes data.json, vocabulary.json and model.json. Raises `UserError`."""
    settings, encoder = recipe.data, pretrained.load(recipe.encoder)
    collection = read(settings)
    splits.subsample(collection, settings)
    hashes, copies = scan_images(collection, settings)
    names = splits.split_images(collection, copies, settings)
    captions = {name: collection.captions[name] for images in names.values() for name in images}
    words = {name: [clean(text) for text in texts] for name, texts in captions.items()}
    vocabulary = Vocabulary.build(
        (line for name in names["train"] for line in words[name]),
        settings.min_count,
        settings.max_length,
    )
    if len(vocabulary) == len(SPECIALS):
        raise UserError(
            f"no word is in the training captions {settings.min_count} times",
            location="data.min_count",
            hint="a smaller min_count, or more images",
        )
    tokens = {
        split: np.array(
            [vocabulary.encode(line) for name in images for line in words[name]], dtype=np.int64
        )
        for split, images in names.items()
    }
    order = {name: place for place, name in enumerate(captions)}
    places = {
        split: np.array([order[name] for name in images for _ in words[name]], dtype=np.int64)
        for split, images in names.items()
    }
    data = CaptionData(
        names,
        captions,
        vocabulary,
        tokens,
        places,
        collection,
        hashes,
        encoder,
        recipe.encoder.precision,
        settings.num_augmentations,
        settings.min_crop_area,
        settings.captions_per_group,
        device,
        folder,
    )
    _write(data, settings, copies)
    return data


def read(settings: DataSettings) -> Collection:
    """The collection that a recipe names: drawn, local, or from the hub."""
    if settings.source == "synthetic":
        home = cache_dir() / "synthetic" / f"{settings.scenes}"
        collection = flickr8k.read(synthetic_scenes.write(home, settings.scenes))
        collection.layout = "synthetic"
        return collection
    if not Path(settings.source).exists() and hub_dataset.is_hub_name(settings.source):
        return hub_dataset.read(settings.source, cache_dir() / "hub")
    return flickr8k.read(
        Path(settings.source), Path(settings.captions) if settings.captions else None
    )


def scan_images(collection: Collection, settings: DataSettings) -> tuple[ImageHashes, list[dict]]:
    """Reads every picture once. Unreadable ones are dropped, counted and named; copies are found."""
    key = hashlib.sha256(str(Path(settings.source).resolve()).encode()).hexdigest()[:16]
    with ProgressBar("reading pictures") as bar:
        hashes = duplicates.hash_images(
            collection.images,
            sorted(collection.captions),
            cache_dir() / "hashes" / key,
            lambda done, of: bar.at(done / of, f"{done} of {of}"),
        )
    collection.add_problem(
        "unreadable image files",
        "dropped",
        [f"{name}: {why}" for name, why in hashes.unreadable.items()],
    )
    for name in hashes.unreadable:
        del collection.captions[name]
    if not collection.captions:
        raise UserError("no picture can be read", location="data.source")
    return hashes, duplicates.find_duplicates(hashes, settings.max_hash_distance)


def _write(data: CaptionData, settings: DataSettings, copies: list[dict]) -> None:
    """data.json, vocabulary.json and model.json."""
    chosen = (
        np.random.default_rng(0)
        .choice(data.names["train"], min(SHOWN, len(data.names["train"])), replace=False)
        .tolist()
    )
    for name in chosen:
        data.save_thumbnail(name)
    used = copies if len(copies) < 200 else copies[:200]
    tree = {
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
        "duplicates": used,
        "examples": statistics.examples(data.captions, chosen, data.vocabulary),
    }
    write_json(data.folder.path / "data.json", tree)
    write_atomic(data.folder.path / "vocabulary.json", data.vocabulary.to_json().encode())
    write_json(data.folder.path / "model.json", {"encoder": data.encoder.summary()})
    captions, odd = (
        sum(map(len, data.tokens.values())),
        sum(problem["count"] for problem in data.collection.problems),
    )
    log(
        f"{len(data.all_names)} images, {captions} captions, {len(data.vocabulary)} words; {odd} things dropped"
    )


def _digest(data: CaptionData) -> str:
    """Changes with any picture, caption or split in use."""
    tree = {
        split: [[name, data.hashes.sha256[name], data.captions[name]] for name in images]
        for split, images in data.names.items()
    }
    return hashlib.sha256(json.dumps(tree).encode()).hexdigest()


def _split_by(settings: DataSettings) -> str:
    if isinstance(settings.split, SplitFractions):
        shares = settings.split
        parts = f"{shares.train:g}/{shares.validation:g}/{shares.test:g}"
        return f"image, {parts}, seed {settings.split_seed}; copies stay together"
    return f"image, {settings.split} lists"


def _note(data: CaptionData, settings: DataSettings) -> str | None:
    if data.collection.layout == "synthetic":
        return "scenes that the project draws itself: they show that everything works, and say nothing about photographs"
    return f"only {len(data.all_names)} images were used (data.images)" if settings.images else None
