"""Pictures of every kind: read rightly, or refused with a reason."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from tarazu.captions.data.images import open_image, pixels, thumbnail_jpeg
from tarazu.errors import UserError


def encoded(picture, form, **how):
    out = io.BytesIO()
    picture.save(out, form, **how)
    return out.getvalue()


def halves():
    """Left half red, right half blue, wider than high."""
    values = np.zeros((40, 80, 3), np.uint8)
    values[:, :40, 0], values[:, 40:, 2] = 255, 255
    return Image.fromarray(values)


def test_exif_rotation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 270 degrees to stand upright
    picture = open_image(encoded(halves(), "JPEG", exif=exif, quality=95))
    assert picture.size == (40, 80)
    assert np.asarray(picture)[5, 20, 0] > 200  # red is at the top now


@pytest.mark.parametrize("form", ["JPEG", "TIFF"])
def test_cmyk(form):
    picture = open_image(encoded(halves().convert("CMYK"), form))
    assert (
        picture.mode == "RGB"
        and np.asarray(picture)[20, 10, 0] > 200 > np.asarray(picture)[20, 70, 0]
    )


def test_transparency_is_laid_on_white():
    layer = halves().convert("RGBA")
    layer.putalpha(0)
    assert np.asarray(open_image(encoded(layer, "PNG"))).min() == 255
    palette = halves().convert("P")
    assert open_image(encoded(palette, "PNG", transparency=0)).mode == "RGB"


def test_the_first_frame_of_an_animation():
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue", "green")]
    picture = open_image(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert tuple(np.asarray(picture)[10, 10]) == (254, 0, 0) or tuple(
        np.asarray(picture)[10, 10]
    ) == (255, 0, 0)


def test_sixteen_bits_and_gray():
    deep = Image.fromarray((np.arange(64 * 64).reshape(64, 64) * 16).astype(np.uint16))
    values = np.asarray(open_image(encoded(deep, "PNG")))
    assert values.shape == (64, 64, 3) and 250 <= values.max() <= 255 and values.min() == 0
    assert open_image(encoded(halves().convert("L"), "PNG")).mode == "RGB"


def test_a_wrong_name_does_not_matter(tmp_path):
    path = tmp_path / "really-a-png.jpg"
    path.write_bytes(encoded(halves(), "PNG"))
    assert open_image(path).size == (80, 40)


@pytest.mark.parametrize("keep", [0.3, 0.7, 0.95])
@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_cut_short(form, keep):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    data = encoded(noise, form)
    with pytest.raises(UserError, match="damaged or truncated|not an image"):
        open_image(data[: int(len(data) * keep)])


def test_a_bomb_is_refused_before_it_unfolds():
    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    bomb = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(b"\0" * 100))
        + chunk(b"IEND", b"")
    )
    with pytest.raises(UserError, match="million pixels"):
        open_image(bomb)


@pytest.mark.parametrize(
    "data", [b"", b"GIF89a", b"not an image at all", b"\x89PNG\r\n\x1a\n" + b"\0" * 50, b"%PDF-1.4"]
)
def test_not_an_image(data):
    with pytest.raises(UserError):
        open_image(data)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(UserError, match="no such image"):
        open_image(tmp_path / "nothing.jpg")
    with pytest.raises(UserError, match="not a file"):
        open_image(tmp_path)


def test_pixels_are_squashed_to_a_square_and_the_copy_is_small_and_bare():
    assert pixels(halves(), 16).shape == (16, 16, 3)
    exif = Image.Exif()
    exif[0x010E] = "where I live"
    copy = Image.open(
        io.BytesIO(
            thumbnail_jpeg(open_image(encoded(halves().resize((2000, 1000)), "JPEG", exif=exif)))
        )
    )
    assert copy.size == (320, 160) and not copy.getexif()
