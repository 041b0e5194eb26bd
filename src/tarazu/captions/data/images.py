"""Open images safely and give them the form that the encoder reads.

    bytes ─▶ header checked ─▶ decoded ─▶ upright ─▶ RGB ─▶ resized to S x S ─▶ uint8 (S, S, 3)

Normalisation (subtract the mean, divide by the standard deviation, per channel) happens on the
device, in `encoder.efficientnet.EfficientNet.forward`, so that caches and transfers hold one byte
per value.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from tarazu.errors import UserError

# About 12,000 x 8,000. A larger image is more likely a decompression bomb than a photograph.
MAX_PIXELS = 100_000_000
MAX_BYTES = 200_000_000
# By content, whatever the file is called.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
RESAMPLE = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "nearest": Image.Resampling.NEAREST,
}
# What Pillow's readers raise for damaged files.
PIL_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    KeyError,
    IndexError,
    OverflowError,
    MemoryError,
)

# `_open_header` refuses bombs by MAX_PIXELS. A filter belongs to the whole process: set it once.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def open_image(source: bytes | str | Path, location: str = "") -> Image.Image:
    """Open an image as upright RGB.

    Applies the EXIF rotation, converts CMYK and palettes, puts transparency on white, and takes
    the first frame of an animation.

    Args:
        source: the file's bytes or its path.
        location: the file's name, for errors; by default the path.

    Returns:
        The image, in mode RGB.

    Raises:
        UserError: the file is truncated, not an image, or has more than `MAX_PIXELS` pixels.
    """
    if not isinstance(source, bytes):
        location = location or str(source)
        source = _read_bytes(Path(source))
    image = _open_header(source, location)
    try:
        image.load()
        image.seek(0)
        ImageOps.exif_transpose(image, in_place=True)
        return _to_rgb(image)
    except PIL_ERRORS as error:
        raise _damaged(error, location) from None


def open_gray(data: bytes, size: int, location: str = "") -> Image.Image:
    """Open a small gray copy of an image, for the perceptual hash.

    Args:
        data: the file's bytes.
        size: side of the copy, in pixels.
        location: the file's name, for errors.

    Returns:
        The copy, `size` x `size`, in mode L.

    Raises:
        UserError: the file is truncated, not an image, or has more than `MAX_PIXELS` pixels.
    """
    image = _open_header(data, location)
    try:
        # A JPEG can be decoded at a fraction of its size; other formats ignore this.
        image.draft("L", (size * 2, size * 2))
        gray = _to_rgb(ImageOps.exif_transpose(image)).convert("L")
        return gray.resize((size, size), Image.Resampling.BOX)
    except PIL_ERRORS as error:
        raise _damaged(error, location) from None


def pixels(image: Image.Image, size: int, resample: str = "bicubic") -> np.ndarray:
    """Resize an image to a square, without keeping its aspect ratio.

    Args:
        image: in mode RGB.
        size: side of the square, in pixels.
        resample: a key of `RESAMPLE`.

    Returns:
        (size, size, 3), uint8.
    """
    if image.size != (size, size):
        image = image.resize((size, size), RESAMPLE[resample])
    return np.asarray(image, dtype=np.uint8)


def thumbnail_jpeg(image: Image.Image, longest_side: int = 320) -> bytes:
    """Encode a small copy for the report, without any metadata."""
    thumbnail = image.copy()
    thumbnail.thumbnail((longest_side, longest_side))
    out = io.BytesIO()
    thumbnail.save(out, "JPEG", quality=82)
    return out.getvalue()


def _damaged(error: BaseException, location: str) -> UserError:
    return UserError(
        f"the image is damaged or truncated: {error}", location=location, hint="replace the file"
    )


def _read_bytes(path: Path) -> bytes:
    try:
        if not path.is_file():
            message = "not a file" if path.exists() else "no such image"
            raise UserError(message, location=str(path))
        if path.stat().st_size > MAX_BYTES:
            raise UserError(
                f"larger than {MAX_BYTES // 10**6} MB",
                location=str(path),
                hint="give a smaller copy",
            )
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", location=str(path)) from None


def _open_header(data: bytes, location: str) -> Image.Image:
    """Read only the header, so that a decompression bomb is refused before it is decoded."""
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise UserError(
            f"more than {MAX_PIXELS // 10**6} million pixels",
            location=location,
            hint="give a smaller copy",
        ) from None
    except PIL_ERRORS:
        raise UserError(
            "not an image that can be read",
            location=location,
            hint=f"one of {', '.join(FORMATS)}",
        ) from None
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise UserError(
            f"{width} x {height} is more than {MAX_PIXELS // 10**6} million pixels",
            location=location,
            hint="give a smaller copy",
        )
    return image


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert any mode to RGB; transparent pixels become white."""
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        # 16 bits and more: Pillow's own conversion would clip at 255, so scale by the range.
        values = np.asarray(image, dtype=np.float64)
        top = 65535.0 if image.mode != "F" else max(float(values.max(initial=0)), 1.0)
        image = Image.fromarray((np.clip(values / top, 0, 1) * 255).astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        layer = image.convert("RGBA")
        background = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(background, layer).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")
