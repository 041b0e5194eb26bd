"""Views are crops within bounds, mirrored where they may be."""

import numpy as np
import pytest
import torch
from PIL import Image

from tarazu.captions.data.augmentation import fixed_view, is_mirrored, random_view


def ramp():
    """Brightness grows from left to right and from top to bottom, in two colours."""
    x, y = np.meshgrid(np.arange(200), np.arange(100))
    return np.stack([x, y * 2, np.zeros_like(x)], 2).astype(np.uint8)


@pytest.mark.parametrize("view", range(1, 9))
def test_a_view_is_a_crop_mirrored_when_odd(view):
    image = fixed_view(Image.fromarray(ramp()), "ab" * 32, view, 0.6)
    values = np.asarray(image).astype(int)
    assert 0.55 * 20_000 <= image.width * image.height <= 20_000
    brightens_to_the_right = values[0, -1, 0] > values[0, 0, 0]
    assert brightens_to_the_right != is_mirrored(view) and values[-1, 0, 1] > values[0, 0, 1]
    assert image.size == fixed_view(Image.fromarray(ramp()), "ab" * 32, view, 0.6).size


def test_view_zero_is_the_image():
    image = Image.fromarray(ramp())
    assert fixed_view(image, "00" * 32, 0, 0.5) is image


def test_random_views_are_crops_and_images_that_keep_sides_are_not_mirrored():
    torch.manual_seed(0)
    pixels = torch.from_numpy(np.asarray(Image.fromarray(ramp()).resize((64, 64))).copy()).repeat(
        60, 1, 1, 1
    )
    keep_sides = torch.arange(60) < 30
    views = random_view(pixels, keep_sides, 0.6)
    assert views.shape == pixels.shape and views.min() >= 0 and views.max() <= pixels.max()
    brightens_to_the_right = views[:, 32, -1, 0] > views[:, 32, 0, 0]
    assert brightens_to_the_right[:30].all() and 5 < brightens_to_the_right[30:].sum() < 25
    assert (views[:, -1, 32, 1] > views[:, 0, 32, 1]).all()
    torch.testing.assert_close(
        random_view(pixels, torch.ones(60, dtype=torch.bool), 1.0)[:, 20:44, 20:44],
        pixels[:, 20:44, 20:44].float(),
        atol=30,
        rtol=0,
    )
