"""Images of every kind are read correctly, or refused with a reason."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from tarazu.captions.data.images import open_image, pixels, thumbnail_jpeg
from tarazu.errors import UserError


def encoded(image, image_format, **options):
    out = io.BytesIO()
    image.save(out, image_format, **options)
    return out.getvalue()


def halves():
    """Left half red, right half blue, wider than high."""
    values = np.zeros((40, 80, 3), np.uint8)
    values[:, :40, 0], values[:, 40:, 2] = 255, 255
    return Image.fromarray(values)


def test_exif_rotation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 270 degrees to stand upright
    image = open_image(encoded(halves(), "JPEG", exif=exif, quality=95))
    assert image.size == (40, 80)
    assert np.asarray(image)[5, 20, 0] > 200  # red is at the top


@pytest.mark.parametrize("image_format", ["JPEG", "TIFF"])
def test_cmyk_becomes_rgb(image_format):
    image = open_image(encoded(halves().convert("CMYK"), image_format))
    assert image.mode == "RGB" and np.asarray(image)[20, 10, 0] > 200 > np.asarray(image)[20, 70, 0]


def test_transparency_becomes_white():
    layer = halves().convert("RGBA")
    layer.putalpha(0)
    assert np.asarray(open_image(encoded(layer, "PNG"))).min() == 255
    palette = halves().convert("P")
    assert open_image(encoded(palette, "PNG", transparency=0)).mode == "RGB"


def test_an_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue", "green")]
    image = open_image(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert tuple(np.asarray(image)[10, 10]) == (254, 0, 0) or tuple(np.asarray(image)[10, 10]) == (
        255,
        0,
        0,
    )


def test_sixteen_bits_and_gray_become_rgb():
    sixteen_bit = Image.fromarray((np.arange(64 * 64).reshape(64, 64) * 16).astype(np.uint16))
    values = np.asarray(open_image(encoded(sixteen_bit, "PNG")))
    assert values.shape == (64, 64, 3) and 250 <= values.max() <= 255 and values.min() == 0
    assert open_image(encoded(halves().convert("L"), "PNG")).mode == "RGB"


def test_the_format_is_read_from_the_content(tmp_path):
    path = tmp_path / "really-a-png.jpg"
    path.write_bytes(encoded(halves(), "PNG"))
    assert open_image(path).size == (80, 40)


@pytest.mark.parametrize("fraction", [0.3, 0.7, 0.95])
@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
def test_truncated_files_are_refused(image_format, fraction):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    data = encoded(noise, image_format)
    with pytest.raises(UserError, match="damaged or truncated|not an image"):
        open_image(data[: int(len(data) * fraction)])


def test_a_decompression_bomb_is_refused_before_it_is_decoded():
    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    bomb = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 100))
        + chunk(b"IEND", b"")
    )
    with pytest.raises(UserError, match="million pixels"):
        open_image(bomb)


@pytest.mark.parametrize(
    "data", [b"", b"GIF89a", b"not an image at all", b"\x89PNG\r\n\x1a\n" + b"\0" * 50, b"%PDF-1.4"]
)
def test_other_files_are_refused(data):
    with pytest.raises(UserError):
        open_image(data)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(UserError, match="no such image"):
        open_image(tmp_path / "nothing.jpg")
    with pytest.raises(UserError, match="not a file"):
        open_image(tmp_path)


def test_pixels_are_square_and_the_thumbnail_is_small_without_metadata():
    assert pixels(halves(), 16).shape == (16, 16, 3)
    exif = Image.Exif()
    exif[0x010E] = "where I live"
    thumbnail = Image.open(
        io.BytesIO(
            thumbnail_jpeg(open_image(encoded(halves().resize((2000, 1000)), "JPEG", exif=exif)))
        )
    )
    assert thumbnail.size == (320, 160) and not thumbnail.getexif()
