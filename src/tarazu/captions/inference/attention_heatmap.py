"""Heat maps of the attention to each word, drawn over the image that the model got.

The maps are enlarged bilinearly. All words share one scale, so a faint panel means that the
attention was spread over the full image.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from PIL import Image

from tarazu.captions.metrics.attention_entropy import attention_entropy

COLUMNS = 5
PANEL_INCHES = 1.9


def enlarge(alpha: np.ndarray, side: int) -> np.ndarray:
    """Enlarge attention maps bilinearly.

    Args:
        alpha: weights over a square map, (words, P).
        side: pixels of a side of the result.

    Returns:
        (words, side, side).
    """
    width = math.isqrt(alpha.shape[1])
    maps = alpha.reshape(-1, width, width).astype(np.float32)
    size = (side, side)
    images = [Image.fromarray(map_).resize(size, Image.Resampling.BILINEAR) for map_ in maps]
    return np.stack([np.asarray(image) for image in images])


def draw(pixels: np.ndarray, words: list[str], alpha: np.ndarray, path: Path | str) -> None:
    """Draw one panel for the image and one for each word, as PNG or SVG by the path's suffix.

    Args:
        pixels: the model's input, uint8 (S, S, 3).
        words: the caption.
        alpha: attention weights (len(words), P), each row with sum 1.
        path: the file.
    """
    # Imported here because matplotlib takes half a second to load.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = -(-(len(words) + 1) // COLUMNS)
    figure = Figure(
        figsize=(COLUMNS * PANEL_INCHES, rows * (PANEL_INCHES + 0.35) + 0.5),
        dpi=120,
        layout="constrained",
    )
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    for panel in panels:
        panel.set_axis_off()
    panels[0].imshow(pixels)
    panels[0].set_title("the model's input", fontsize=9)
    maps, entropies = enlarge(alpha, pixels.shape[0]), attention_entropy(alpha)
    overlay = None
    for panel, word, map_, nats in zip(panels[1:], words, maps, entropies, strict=False):
        panel.imshow(pixels.mean(2), cmap="gray")
        overlay = panel.imshow(map_, cmap="inferno", alpha=0.6, vmin=0, vmax=float(maps.max()))
        panel.set_title(f"{word}\n{nats:.2f} nats", fontsize=9)
    bar = figure.colorbar(overlay, ax=panels.tolist(), shrink=0.6, pad=0.01)
    bar.set_label("attention (the same scale for every word)", fontsize=8)
    uniform = math.log(alpha.shape[1])
    figure.suptitle(f"{' '.join(words)}   (uniform attention: {uniform:.2f} nats)", fontsize=10)
    figure.savefig(path)
