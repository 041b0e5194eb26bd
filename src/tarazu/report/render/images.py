"""Pictures inside the page: small JPEGs as data, and attention laid over the image that the model saw."""

from __future__ import annotations

import base64
import io
from functools import lru_cache
from pathlib import Path

import numpy as np
from markupsafe import Markup
from PIL import Image, ImageDraw

from tarazu.report.render.bilingual import visible

SIDE, SMALL = 192, 112
HOT = np.array([255, 64, 0], dtype=np.float32)


@lru_cache(maxsize=64)
def _opened(path: Path, side: int) -> Image.Image | None:
    """The picture at most `side` pixels wide and high; None where it is missing, huge or broken."""
    try:
        with Image.open(path) as image:
            if image.width * image.height > 40_000_000:
                return None
            image = image.convert("RGB")
            image.thumbnail((side, side))
            return image
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def inside(folder: Path, name) -> Path | None:
    """The file that `name` means, if it lies under `folder`."""
    if not isinstance(name, str) or not name or "\x00" in name:
        return None
    try:
        path = (folder / name).resolve()
        return path if path.is_relative_to(folder.resolve()) and path.is_file() else None
    except (OSError, ValueError):
        return None


def photo(folder: Path, name, alt: str) -> Markup | None:
    """An `img` with the picture inside it; None where there is none. `alt` says what people wrote about it."""
    path = inside(folder, name)
    image = _opened(path, SIDE) if path else None
    return None if image is None else _img(image, alt)


def overlay(folder: Path, name, weights: list[float], top: float, alt: str) -> Markup | None:
    """The picture with one word's attention over it: bilinear, one scale (`top`) for all words of the sentence."""
    path = inside(folder, name)
    image = _opened(path, SMALL) if path else None
    blended = None if image is None else overlay_heat(image, weights, top)
    return None if blended is None else _img(blended, alt)


def overlay_heat(image: Image.Image, weights: list[float], top: float) -> Image.Image | None:
    """`image` in grey, darkened where the model did not look, red where it did; None where the weights are no square grid."""
    side = int(round(len(weights) ** 0.5))
    if side * side != len(weights) or side == 0 or top <= 0:
        return None
    grid = Image.fromarray(
        (np.clip(np.array(weights, dtype=np.float32).reshape(side, side) / top, 0, 1) * 255).astype(
            np.uint8
        )
    )
    heat = (
        np.asarray(grid.resize(image.size, Image.Resampling.BILINEAR), dtype=np.float32)[..., None]
        / 255
    )
    pixels = np.asarray(image.convert("L"), dtype=np.float32)[..., None] * (0.45 + 0.55 * heat)
    return Image.fromarray(
        np.clip(pixels * (1 - 0.45 * heat) + HOT * 0.45 * heat, 0, 255).astype(np.uint8)
    )


def contact_sheet(
    folder: Path, name, words: list[str], attention: list[list[float]], to: Path
) -> bool:
    """All words' maps in one PNG file beside the report. False where there is nothing to draw."""
    path = inside(folder, name)
    image = _opened(path, SIDE) if path else None
    if image is None or not words:
        return False
    top, wide, high = scale(attention), image.width, image.height + 20
    columns = min(len(words), 6)
    page = Image.new("RGB", (columns * (wide + 6), -(-len(words) // columns) * (high + 6)), "white")
    pen = ImageDraw.Draw(page)
    for i, (word, row) in enumerate(zip(words, attention, strict=False)):
        blended = overlay_heat(image, row, top)
        if blended is None:
            return False
        x, y = i % columns * (wide + 6), i // columns * (high + 6)
        page.paste(blended, (x, y + 20))
        pen.text(
            (x + 4, y + 4), visible(word)[:24].encode("ascii", "replace").decode(), fill="black"
        )
    to.parent.mkdir(parents=True, exist_ok=True)
    page.quantize(96).save(to, "PNG", optimize=True)
    return True


def scale(attention: list[list[float]]) -> float:
    """The one scale of a sentence: the largest weight of any of its words."""
    return max((max(row) for row in attention if row), default=0.0)


def _img(image: Image.Image, alt: str) -> Markup:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=72, optimize=True)
    data = base64.b64encode(out.getvalue()).decode()
    return Markup(
        '<img class="photo" width="{}" height="{}" alt="{}" src="data:image/jpeg;base64,{}">'
    ).format(image.width, image.height, visible(alt)[:300], data)
