"""The prepared captions and images of a study, with their features.

`prepare_data.prepare` makes a `CaptionData`. Features of the images follow when they are first
asked for, from a cache (see `encoder.feature_cache`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch

from tarazu.captions.data import statistics
from tarazu.captions.data.augmentation import SIDE_WORDS
from tarazu.captions.data.duplicates import ImageHashes
from tarazu.captions.data.flickr8k import Collection
from tarazu.captions.data.images import open_image, thumbnail_jpeg
from tarazu.captions.data.vocabulary import Vocabulary, clean
from tarazu.captions.encoder import feature_cache
from tarazu.captions.encoder.feature_cache import FeatureStore, ImageView
from tarazu.captions.encoder.pretrained import Pretrained
from tarazu.captions.training.cider_reward import CiderReward
from tarazu.storage.atomic_io import write_atomic
from tarazu.storage.run_folder import StudyDir


@dataclass
class CaptionData:
    """Data of the captions task: rows are (image, caption) pairs, by split.

    Args:
        names: image names by split.
        captions: raw captions by image, of the images in use.
        vocabulary: of the training split.
        tokens: token ids (rows, max_length + 2) by split.
        image_indices: the rows' images (rows,) by split, as positions in `all_names`.
        collection: where the images and captions came from.
        hashes: of the images.
        encoder: pretrained and frozen.
        precision: of cached features, "float16" or "float32".
        num_augmentations: views of each training image; 1 is the image alone.
        min_crop_area: smallest fraction of an image that a view keeps.
        captions_per_group: consecutive rows that always share a step.
        device: where tensors are wanted.
        folder: the study's.
        scorers: filled by evaluation, once for all methods.
        baselines: filled by evaluation, once for all methods.
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
        """Rows of a split."""
        return len(self.tokens[split])

    @cached_property
    def all_names(self) -> list[str]:
        """Names of all N images: train, then validation, then test."""
        return [name for images in self.names.values() for name in images]

    @cached_property
    def index_of(self) -> dict[str, int]:
        """Position of each image in `all_names`."""
        return {name: index for index, name in enumerate(self.all_names)}

    def references(self, split: str) -> dict[str, list[str]]:
        """Raw captions by image, of a split."""
        return {name: self.captions[name] for name in self.names[split]}

    @cached_property
    def feature_maps(self) -> FeatureStore:
        """The frozen encoder's features (V, P, D) of all views.

        First the N images of `all_names`, then view 1 of every training image, then view 2, and
        so on.
        """
        views = [ImageView(name) for name in self.all_names]
        views += [
            ImageView(name, view, self.min_crop_area)
            for view in range(1, self.num_augmentations)
            for name in self.names["train"]
        ]
        return feature_cache.load_features(
            self.encoder, self.collection.images, views, self.hashes, self.precision, self.device
        )

    @cached_property
    def pooled_features(self) -> FeatureStore:
        """Means of `feature_maps` over the positions (V, 1, D), in float32."""
        return self.feature_maps.mean_pooled()

    @cached_property
    def pixels(self) -> FeatureStore:
        """Pixels of the N images (N, S, S, 3), uint8, for an encoder that is trained as well."""
        views = [ImageView(name) for name in self.all_names]
        return feature_cache.load_pixels(
            self.encoder, self.collection.images, views, self.hashes, self.device
        )

    def free_gpu_features(self) -> None:
        """Free the GPU memory of the frozen features; the next lookup copies them again."""
        if "feature_maps" in self.__dict__:
            self.feature_maps.free_gpu()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # other processes may share the GPU

    @cached_property
    def cider_reward(self) -> CiderReward:
        """CIDEr against the training captions, on the device; images by their position."""
        lines = [[clean(text) for text in texts] for texts in self.references("train").values()]
        return CiderReward(lines, self.vocabulary, self.device)

    def random_view_rows(self, indices: torch.Tensor, keep_sides: torch.Tensor) -> torch.Tensor:
        """Choose a random view of each training image.

        Args:
            indices: (B,) positions in `all_names`.
            keep_sides: (B,) bool, True where an image must not be mirrored.

        Returns:
            (B,) rows of `feature_maps`.
        """
        if self.num_augmentations == 1:
            return indices
        view = torch.randint(self.num_augmentations, indices.shape, device=indices.device)
        # Odd views are mirrored: the even one before each is not.
        view = torch.where(keep_sides, view - view % 2, view)
        augmented = len(self.all_names) + (view - 1) * len(self.names["train"]) + indices
        return torch.where(view == 0, indices, augmented)

    def mentions_left_right(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tell which captions say "left" or "right".

        Args:
            tokens: (B, T).

        Returns:
            (B,) bool.
        """
        says_side = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
        for word in SIDE_WORDS:
            if word in self.vocabulary.ids:
                says_side |= (tokens == self.vocabulary.ids[word]).any(1)
        return says_side

    def save_thumbnail(self, name: str) -> str:
        """Write a small copy of an image into the run folder, and return its path there."""
        relative = f"images/{statistics.jpeg_name(name)}"
        path = self.folder.path / relative
        if not path.exists():
            write_atomic(path, thumbnail_jpeg(open_image(self.collection.images.read(name), name)))
        return relative
