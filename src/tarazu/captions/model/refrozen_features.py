"""Features of all images from a fine-tuned encoder that is frozen again, computed once.

The rows are those of `CaptionData.feature_maps`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tarazu.captions.data.augmentation import is_mirrored, random_view
from tarazu.captions.dataset import CaptionData
from tarazu.captions.encoder.feature_cache import MAX_GPU_FRACTION
from tarazu.captions.model.captioning_model import MAX_IMAGES_PER_PASS, ImageCaptioningModel


class FeatureTable:
    """Rows of features, on the GPU if they fit, else in host memory.

    Args:
        shape: (N, P, D).
        dtype: of the rows.
        device: where `lookup` returns them.
    """

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device):
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
        fits = math.prod(shape) * dtype.itemsize < MAX_GPU_FRACTION * free
        self.rows = torch.empty(shape, dtype=dtype, device=device if fits else "cpu")
        self.device = device

    def lookup(self, indices: Tensor) -> Tensor:
        """Return rows (B, P, D) at indices (B,), which may be on any device."""
        return self.rows[indices.to(self.rows.device)].to(self.device)


@torch.no_grad()
def encode_all(model: ImageCaptioningModel, data: CaptionData, pooled: bool) -> FeatureTable:
    """Encode every image, then `num_augmentations` - 1 further views of the training images.

    The views are ordered by view, then by image, and every second one is mirrored. A resumed run
    draws the same views.

    Args:
        model: the model, in any mode.
        data: the prepared data.
        pooled: keep only the mean over the positions, in float32.

    Returns:
        N = images + (num_augmentations - 1) * training images rows; P is 1 if pooled.
    """
    data.free_gpu_features()
    device = data.device
    num_images, num_train = len(data.all_names), len(data.names["train"])
    table = FeatureTable(
        (
            num_images + (data.num_augmentations - 1) * num_train,
            1 if pooled else data.encoder.grid_size**2,
            data.encoder.module.width,
        ),
        torch.float32 if pooled else getattr(torch, data.precision),
        device,
    )
    with (
        torch.random.fork_rng([device] if device.type == "cuda" else []),
        torch.autocast(device.type, enabled=False),
    ):
        torch.manual_seed(0)  # the views of a resumed run are the same
        row = 0
        for view in range(data.num_augmentations):
            indices = torch.arange(num_images if view == 0 else num_train, device=device)
            for part in indices.split(MAX_IMAGES_PER_PASS):
                features = model.encode_pixels(view_pixels(data, part, view))
                if pooled:
                    features = features.float().mean(1, keepdim=True)
                table.rows[row : row + len(part)] = features
                row += len(part)
    return table


def view_pixels(data: CaptionData, indices: Tensor, view: int) -> Tensor:
    """Return pixels (B, S, S, 3) of one view of images (B,); view 0 is the image itself."""
    pixels = data.pixels.lookup(indices)
    if view == 0:
        return pixels
    not_mirrored = torch.ones(len(indices), dtype=torch.bool, device=data.device)
    pixels = random_view(pixels, not_mirrored, data.min_crop_area)
    return pixels.flip(2) if is_mirrored(view) else pixels
