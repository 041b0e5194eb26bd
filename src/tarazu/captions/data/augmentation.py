"""Random crops and mirrored copies of training images, against overfitting.

A frozen encoder reads a few fixed views of each image (`fixed_view`), whose features are cached
like those of the image itself. A fine-tuned encoder reads a fresh view at every step
(`random_view`). An image whose caption says "left" or "right" is never mirrored.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

SIDE_WORDS = ("left", "right")
MAX_ASPECT_RATIO = 4 / 3  # of a crop's sides, as fractions of the image's


def is_mirrored(view: int) -> bool:
    """Tell whether a fixed view is mirrored: the odd ones are. View 0 is the image itself."""
    return view % 2 == 1


def fixed_view(image: Image.Image, sha256: str, view: int, min_crop_area: float) -> Image.Image:
    """Return a numbered view of an image, the same at every call.

    Args:
        image: the image.
        sha256: of its bytes; with `view` it seeds the random crop.
        view: 0 for the image itself, else the number of a crop.
        min_crop_area: smallest fraction of the image's area that a crop keeps.

    Returns:
        The crop, mirrored if `view` is odd.
    """
    if view == 0:
        return image
    rng = np.random.default_rng([int(sha256[:12], 16), view])
    # Area and aspect ratio first, then sides as fractions of the image's, then the position.
    area = rng.uniform(min_crop_area, 1.0)
    stretch = math.exp(rng.uniform(-1, 1) * math.log(MAX_ASPECT_RATIO) / 2)
    crop_width, crop_height = (min(1.0, math.sqrt(area) * side) for side in (stretch, 1 / stretch))
    left, top = rng.uniform(0, 1 - crop_width), rng.uniform(0, 1 - crop_height)
    width, height = image.size
    right = max(round((left + crop_width) * width), 1)
    bottom = max(round((top + crop_height) * height), 1)
    crop = image.crop((round(left * width), round(top * height), right, bottom))
    return ImageOps.mirror(crop) if is_mirrored(view) else crop


def random_view(pixels: Tensor, keep_sides: Tensor, min_crop_area: float) -> Tensor:
    """Return a fresh random view of each image, on the device of the images.

    One bilinear resampling crops, resizes and mirrors: `affine_grid` says where in the source
    image, in coordinates from -1 to 1, each pixel of the result lies.

    Args:
        pixels: (B, S, S, 3), values 0..255.
        keep_sides: (B,) bool, True where an image must not be mirrored.
        min_crop_area: smallest fraction of an image's area that a view keeps.

    Returns:
        (B, S, S, 3), float32, values 0..255.
    """
    count, device = len(pixels), pixels.device
    area = min_crop_area + (1 - min_crop_area) * torch.rand(count, device=device)
    stretch = torch.exp((torch.rand(count, device=device) - 0.5) * math.log(MAX_ASPECT_RATIO))
    width, height = (area.sqrt() * stretch).clamp(max=1), (area.sqrt() / stretch).clamp(max=1)
    mirror = torch.where((torch.rand(count, device=device) < 0.5) & ~keep_sides, -1.0, 1.0)
    # The crop's centre, so that the crop stays inside the image.
    x, y = ((torch.rand(count, device=device) * 2 - 1) * (1 - side) for side in (width, height))
    zero = torch.zeros_like(x)
    x_row = torch.stack([width * mirror, zero, x], 1)
    y_row = torch.stack([zero, height, y], 1)
    transform = torch.stack([x_row, y_row], 1)  # (B, 2, 3)
    with torch.autocast(device.type, enabled=False):
        grid = F.affine_grid(transform, (count, 3, *pixels.shape[1:3]), align_corners=False)
        images = pixels.permute(0, 3, 1, 2).float()
        views = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    return views.permute(0, 2, 3, 1)
