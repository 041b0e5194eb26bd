"""Where the model looked, word by word: the attention over the map, drawn over the picture that the model saw.

The map is enlarged bilinearly, and one scale serves all words: a faint panel is one in which the model looked
everywhere.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from PIL import Image

COLUMNS = 5
PANEL = 1.9  # inches


def entropy(alpha: np.ndarray) -> np.ndarray:
    """alpha (n, P) -> nats per word, (n,): 0 for a single place, log P for all places alike."""
    return -(alpha * np.log(np.maximum(alpha, 1e-12))).sum(1)


def enlarge(alpha: np.ndarray, side: int) -> np.ndarray:
    """alpha (n, P) of a square map -> (n, side, side), bilinear between the places' centres."""
    width = math.isqrt(alpha.shape[1])
    maps = alpha.reshape(-1, width, width).astype(np.float32)
    return np.stack(
        [
            np.asarray(Image.fromarray(one).resize((side, side), Image.Resampling.BILINEAR))
            for one in maps
        ]
    )


def draw(picture: np.ndarray, words: list[str], alpha: np.ndarray, path: Path | str) -> None:
    """One panel for the picture and one for each word; written as PNG or SVG by the name's ending.

    Args:
        picture: what the model saw, uint8 (S, S, 3).
        words: the caption; alpha: (len(words), P), each row adding up to 1.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = -(-(len(words) + 1) // COLUMNS)
    figure = Figure(
        figsize=(COLUMNS * PANEL, rows * (PANEL + 0.35) + 0.5), dpi=120, layout="constrained"
    )
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    for panel in panels:
        panel.set_axis_off()
    panels[0].imshow(picture)
    panels[0].set_title("what the model saw", fontsize=9)
    maps, nats = enlarge(alpha, picture.shape[0]), entropy(alpha)
    top, shown = float(maps.max()), None
    for panel, word, one, value in zip(panels[1:], words, maps, nats, strict=False):
        panel.imshow(picture.mean(2), cmap="gray")
        shown = panel.imshow(one, cmap="inferno", alpha=0.6, vmin=0, vmax=top)
        panel.set_title(f"{word}\n{value:.2f} nats", fontsize=9)
    bar = figure.colorbar(shown, ax=panels.tolist(), shrink=0.6, pad=0.01)
    bar.set_label("attention (the same scale for every word)", fontsize=8)
    figure.suptitle(
        f"{' '.join(words)}   (looking everywhere alike would be {math.log(alpha.shape[1]):.2f} nats)",
        fontsize=10,
    )
    figure.savefig(path)
