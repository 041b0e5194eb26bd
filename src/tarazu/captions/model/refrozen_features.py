"""What a tuned encoder sees of every picture, once, after it has come to stand still: rows like those of `CaptionData.feature_maps`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tarazu.captions.data.augmentation import is_mirrored, random_view
from tarazu.captions.encoder.feature_cache import MAX_GPU_FRACTION
from tarazu.captions.model.captioning_model import MAX_IMAGES_PER_PASS, ImageCaptioningModel

if TYPE_CHECKING:
    from tarazu.captions.dataset import CaptionData


class FeatureTable:
    """Rows (N, P, D) on the GPU where they fit, else in memory."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device):
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
        fits = math.prod(shape) * dtype.itemsize < MAX_GPU_FRACTION * free
        self.rows, self.device = (
            torch.empty(shape, dtype=dtype, device=device if fits else "cpu"),
            device,
        )

    def lookup(self, pictures: Tensor) -> Tensor:
        """pictures (B,) on any device -> their rows (B, ...) on the GPU, if there is one."""
        return self.rows[pictures.to(self.rows.device)].to(self.device)


@torch.no_grad()
def encode_all(model: ImageCaptioningModel, data: CaptionData, pooled: bool) -> FeatureTable:
    """Every picture's features, then those of `data.num_augmentations` - 1 further views of the training pictures, view by view, every
    second one mirrored; of `pooled` their means in float32. The same ones whenever a run is resumed."""
    names, device = data.all_names, data.device
    data.free_gpu_features()
    count, shape = (
        len(data.names["train"]),
        (1 if pooled else data.encoder.grid_size**2, data.encoder.module.width),
    )
    kept = FeatureTable(
        (len(names) + (data.num_augmentations - 1) * count, *shape),
        torch.float32 if pooled else getattr(torch, data.precision),
        device,
    )
    with (
        torch.random.fork_rng([device] if device.type == "cuda" else []),
        torch.autocast(device.type, enabled=False),
    ):
        torch.manual_seed(0)  # resumed or not, the further views are the same
        at = 0
        for view in range(data.num_augmentations):
            for places in torch.arange(len(names) if view == 0 else count, device=device).split(
                MAX_IMAGES_PER_PASS
            ):
                found = model.encode_pixels(_view(data, places, view))
                kept.rows[at : at + len(places)] = (
                    found.float().mean(1, keepdim=True) if pooled else found
                )
                at += len(places)
    return kept


def _view(data: CaptionData, places: Tensor, view: int) -> Tensor:
    pixels = data.pixels.lookup(places)
    if view == 0:
        return pixels
    seen = random_view(
        pixels, torch.ones(len(places), dtype=torch.bool, device=data.device), data.min_crop_area
    )
    return seen.flip(2) if is_mirrored(view) else seen
