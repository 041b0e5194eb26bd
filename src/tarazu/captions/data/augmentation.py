"""Other views of a training picture: crops, every second one mirrored, so that pictures are not learnt by heart.

A frozen encoder sees a few fixed views of each picture, whose features are cached like those of the picture itself; a
fine-tuned one sees a new view each time. A caption that says "left" or "right" is never taught with a mirrored picture.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

SIDE_WORDS = ("left", "right")
MAX_ASPECT_RATIO = 4 / 3  # a crop's sides may differ by so much


def is_mirrored(view: int) -> bool:
    """View 0 is the picture itself; odd views are mirrored."""
    return view % 2 == 1


def fixed_view(picture: Image.Image, sha256: str, view: int, smallest: float) -> Image.Image:
    """The `view`-th view of a picture: always the same one. `smallest` is the least share of the area that a crop
    keeps."""
    if view == 0:
        return picture
    dice = np.random.default_rng([int(sha256[:12], 16), view])
    area, stretch = (
        dice.uniform(smallest, 1.0),
        math.exp(dice.uniform(-1, 1) * math.log(MAX_ASPECT_RATIO) / 2),
    )
    width, height = (min(1.0, math.sqrt(area) * side) for side in (stretch, 1 / stretch))
    x, y = dice.uniform(0, 1 - width), dice.uniform(0, 1 - height)
    w, h = picture.size
    picture = picture.crop(
        (
            round(x * w),
            round(y * h),
            max(round((x + width) * w), 1),
            max(round((y + height) * h), 1),
        )
    )
    return ImageOps.mirror(picture) if is_mirrored(view) else picture


def random_view(pixels: Tensor, sided: Tensor, smallest: float) -> Tensor:
    """pixels (B, S, S, 3) -> a random view of each, float32, 0..255; `sided` (B,) ones are not mirrored."""
    count, device = len(pixels), pixels.device
    area = smallest + (1 - smallest) * torch.rand(count, device=device)
    stretch = torch.exp((torch.rand(count, device=device) - 0.5) * math.log(MAX_ASPECT_RATIO))
    width, height = (area.sqrt() * stretch).clamp(max=1), (area.sqrt() / stretch).clamp(max=1)
    mirror = torch.where((torch.rand(count, device=device) < 0.5) & ~sided, -1.0, 1.0)
    x, y = ((torch.rand(count, device=device) * 2 - 1) * (1 - side) for side in (width, height))
    nothing = torch.zeros_like(x)
    place = torch.stack(
        [torch.stack([width * mirror, nothing, x], 1), torch.stack([nothing, height, y], 1)], 1
    )
    with torch.autocast(device.type, enabled=False):
        grid = F.affine_grid(place, (count, 3, *pixels.shape[1:3]), align_corners=False)
        seen = F.grid_sample(
            pixels.permute(0, 3, 1, 2).float(), grid, padding_mode="border", align_corners=False
        )
    return seen.permute(0, 2, 3, 1)
