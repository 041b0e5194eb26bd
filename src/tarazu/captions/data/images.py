"""Pictures as the encoder takes them: opened safely, upright, in RGB, resized, normalised; refused with a reason."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from tarazu.errors import UserError

MAX_PIXELS = (
    100_000_000  # about 12,000 x 8,000; a larger one is more likely a bomb than a photograph
)
MAX_BYTES = 200_000_000
FORMATS = (
    "JPEG",
    "PNG",
    "WEBP",
    "GIF",
    "BMP",
    "TIFF",
    "PPM",
)  # by content, whatever the file is called
RESAMPLE = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "nearest": Image.Resampling.NEAREST,
}
PIL_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    KeyError,
    IndexError,
    OverflowError,
    MemoryError,
)  # what Pillow's readers raise

# refused below by our own measure; filters belong to the whole process, so threads must not set them one by one
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def open_image(source: bytes | str | Path, where: str = "") -> Image.Image:
    """An upright RGB picture from bytes or a file.

    The EXIF rotation is applied, CMYK and palettes are converted, transparency is laid on white, of an animation the
    first frame is taken. Raises `UserError` when it is truncated, not an image, or has more than `MAX_PIXELS`.
    """
    data, where = (
        (source, where)
        if isinstance(source, bytes)
        else (_file_bytes(Path(source)), where or str(source))
    )
    picture = _header(data, where)
    try:
        picture.load()
        picture.seek(0)
        ImageOps.exif_transpose(picture, in_place=True)
        return _rgb(picture)
    except PIL_ERRORS as error:
        raise UserError(
            f"the image is damaged or cut short: {error}", location=where, hint="replace the file"
        ) from None


def open_gray(data: bytes, side: int, where: str = "") -> Image.Image:
    """A small gray copy, `side` x `side`, decoded no finer than needed: what the perceptual hash looks at."""
    picture = _header(data, where)
    try:
        picture.draft("L", (side * 2, side * 2))  # JPEG alone can do this; the others ignore it
        return (
            _rgb(ImageOps.exif_transpose(picture))
            .convert("L")
            .resize((side, side), Image.Resampling.BOX)
        )
    except PIL_ERRORS as error:
        raise UserError(
            f"the image is damaged or cut short: {error}", location=where, hint="replace the file"
        ) from None


def pixels(picture: Image.Image, size: int, resample: str = "bicubic") -> np.ndarray:
    """The picture as the model sees it before normalisation: uint8 (size, size, 3), squashed to a square."""
    if picture.size != (size, size):
        picture = picture.resize((size, size), RESAMPLE[resample])
    return np.asarray(picture, dtype=np.uint8)


def thumbnail_jpeg(picture: Image.Image, longest: int = 320) -> bytes:
    """A small copy for the report, without any metadata."""
    copy = picture.copy()
    copy.thumbnail((longest, longest))
    out = io.BytesIO()
    copy.save(out, "JPEG", quality=82)
    return out.getvalue()


def _file_bytes(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise UserError("no such image" if not path.exists() else "not a file", location=str(path))
        if path.stat().st_size > MAX_BYTES:
            raise UserError(
                f"larger than {MAX_BYTES // 10**6} MB", location=str(path), hint="give a smaller copy"
            )
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", location=str(path)) from None


def _header(data: bytes, where: str) -> Image.Image:
    """The picture with only its header read, so that a bomb is refused before it unfolds."""
    try:
        picture = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise UserError(
            f"more than {MAX_PIXELS // 10**6} million pixels",
            location=where,
            hint="give a smaller copy",
        ) from None
    except PIL_ERRORS:
        raise UserError(
            "not an image that can be read", location=where, hint=f"one of {', '.join(FORMATS)}"
        ) from None
    width, height = picture.size
    if width * height > MAX_PIXELS:
        raise UserError(
            f"{width} x {height} is more than {MAX_PIXELS // 10**6} million pixels",
            location=where,
            hint="give a smaller copy",
        )
    return picture


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I;16") or picture.mode in (
        "I",
        "F",
    ):  # 16 bits and more: to 0..255 by their own range
        values = np.asarray(picture, dtype=np.float64)
        top = 65535.0 if picture.mode != "F" else max(float(values.max(initial=0)), 1.0)
        picture = Image.fromarray((np.clip(values / top, 0, 1) * 255).astype(np.uint8))
    if "A" in picture.getbands() or "transparency" in picture.info:
        layer = picture.convert("RGBA")
        ground = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(ground, layer).convert("RGB")
    return picture if picture.mode == "RGB" else picture.convert("RGB")
