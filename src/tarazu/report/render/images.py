"""Images inside the page: small JPEGs, and attention laid over the image that a model saw."""

from __future__ import annotations

import base64
import io
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image, ImageDraw

from tarazu.report.render.bilingual import visible

PHOTO_SIDE, OVERLAY_SIDE = 192, 112  # pixels
MAX_PIXELS = 40_000_000  # of an image that is opened
HOT = np.array([255, 64, 0], dtype=np.float32)  # the colour of attention
SHEET_COLUMNS, SHEET_GAP, SHEET_CAPTION = 6, 6, 20  # of a contact sheet; the last two in pixels


@lru_cache(maxsize=64)
def _opened(path: Path, side: int) -> Image.Image | None:
    """The image, at most `side` pixels wide and high; None where it is missing, huge or broken."""
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                return None
            image = image.convert("RGB")
            image.thumbnail((side, side))
            return image
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def inside(folder: Path, name: Any) -> Path | None:
    """The file `name` of a folder; None where it does not exist or lies outside of the folder."""
    if not isinstance(name, str) or not name or "\x00" in name:
        return None
    try:
        path = (folder / name).resolve()
        return path if path.is_relative_to(folder.resolve()) and path.is_file() else None
    except (OSError, ValueError):
        return None


def photo(folder: Path, name: Any, alt: str) -> Markup | None:
    """An `img` element that contains the image, or None.

    Args:
        folder: the study.
        name: the image's path in it.
        alt: the alternative text, such as what people wrote about the image.
    """
    path = inside(folder, name)
    image = _opened(path, PHOTO_SIDE) if path else None
    return None if image is None else _img(image, alt)


def overlay(folder: Path, name: Any, weights: list[float], top: float, alt: str) -> Markup | None:
    """An `img` element of the image with one word's attention over it, or None.

    Args:
        weights: attention of a square grid of regions, row by row.
        top: the weight that is drawn at full strength, the same for all words of a sentence.
    """
    path = inside(folder, name)
    image = _opened(path, OVERLAY_SIDE) if path else None
    blended = None if image is None else overlay_heat(image, weights, top)
    return None if blended is None else _img(blended, alt)


def overlay_heat(image: Image.Image, weights: list[float], top: float) -> Image.Image | None:
    """Draw attention over an image: grey, dark where the weight is small, red where it is large.

    Args:
        image: the image that the model saw.
        weights: (side * side,), upsampled bilinearly to the image's size.
        top: the weight that is drawn at full strength.

    Returns:
        The drawing, or None where the weights are no square grid.
    """
    side = round(len(weights) ** 0.5)
    if side * side != len(weights) or side == 0 or top <= 0:
        return None
    scaled = np.clip(np.array(weights, dtype=np.float32).reshape(side, side) / top, 0, 1)
    grid = Image.fromarray((scaled * 255).astype(np.uint8))
    upsampled = grid.resize(image.size, Image.Resampling.BILINEAR)
    heat = np.asarray(upsampled, dtype=np.float32)[..., None] / 255  # (height, width, 1)
    grey = np.asarray(image.convert("L"), dtype=np.float32)[..., None]
    darkened = grey * (0.45 + 0.55 * heat)
    blended = darkened * (1 - 0.45 * heat) + HOT * 0.45 * heat
    return Image.fromarray(np.clip(blended, 0, 255).astype(np.uint8))


def contact_sheet(
    folder: Path, name: Any, words: list[str], attention: list[list[float]], to: Path
) -> bool:
    """Write the attention maps of all words of a sentence into one PNG file.

    Args:
        folder: the study.
        name: the image's path in it.
        words: the words of the sentence.
        attention: the weights of each word.
        to: the file that is written.

    Returns:
        False where nothing was written: no image, no words, or weights that are no square grid.
    """
    path = inside(folder, name)
    image = _opened(path, PHOTO_SIDE) if path else None
    if image is None or not words:
        return False
    top = scale(attention)
    width, height = image.width + SHEET_GAP, image.height + SHEET_CAPTION + SHEET_GAP
    columns = min(len(words), SHEET_COLUMNS)
    sheet = Image.new("RGB", (columns * width, -(-len(words) // columns) * height), "white")
    pen = ImageDraw.Draw(sheet)
    for i, (word, weights) in enumerate(zip(words, attention, strict=False)):
        blended = overlay_heat(image, weights, top)
        if blended is None:
            return False
        x, y = i % columns * width, i // columns * height
        sheet.paste(blended, (x, y + SHEET_CAPTION))
        label = visible(word)[:24].encode("ascii", "replace").decode()  # the font has no other
        pen.text((x + 4, y + 4), label, fill="black")
    to.parent.mkdir(parents=True, exist_ok=True)
    sheet.quantize(96).save(to, "PNG", optimize=True)
    return True


def scale(attention: list[list[float]]) -> float:
    """The largest weight of any word of a sentence."""
    return max((max(weights) for weights in attention if weights), default=0.0)


def _img(image: Image.Image, alt: str) -> Markup:
    """An `img` element that contains the image as JPEG data."""
    out = io.BytesIO()
    image.save(out, "JPEG", quality=72, optimize=True)
    data = base64.b64encode(out.getvalue()).decode()
    return Markup(
        '<img class="photo" width="{}" height="{}" alt="{}" src="data:image/jpeg;base64,{}">'
    ).format(image.width, image.height, visible(alt)[:300], data)
