"""Draw a small captioning data set: scenes of shapes, five captions each, without a download.

Every scene has one or two groups of shapes on a ground. A caption can be wrong about their
number, size, colour, shape and relation, so the set shows whether a model learns to look.
"""

from __future__ import annotations

import csv
import io
import math
import random
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

IMAGE_SIZE = 128
COLOURS = {
    "red": "#d62728",
    "blue": "#1f5fbf",
    "yellow": "#f2c80f",
    "black": "#202020",
    "white": "#f8f8f8",
    "orange": "#f28a1e",
    "purple": "#7a3fa0",
    "pink": "#f49ac1",
}
SHAPES = ("circle", "square", "triangle", "star", "heart")
GROUNDS = {  # colours of the sky and of the ground
    "grass": ("#8fc7ee", "#5fae4b"),
    "sand": ("#bfe3f5", "#e2c88f"),
    "snow": ("#c9d6e2", "#eef3f7"),
    "water": ("#d9ecf7", "#2f7fb5"),
    "road": ("#b9c4cc", "#70757a"),
}
NUMBERS = {1: "a", 2: "two", 3: "three"}
CAPTIONS_PER_IMAGE = 5

Box = tuple[int, int, int, int]  # left, top, right, bottom
FULL_BOX: Box = (6, 6, 122, 122)
UPPER_BOX: Box = (6, 4, 122, 62)
LOWER_BOX: Box = (6, 66, 122, 124)
LEFT_BOX: Box = (4, 20, 62, 110)
RIGHT_BOX: Box = (66, 20, 124, 110)


@dataclass(frozen=True)
class ShapeGroup:
    """One to three shapes of one kind, size ("small" or "big") and colour."""

    count: int
    size: str
    colour: str
    shape: str

    def words(self, with_size: bool = True) -> str:
        """Describe the group, as in "two big red stars"."""
        noun = self.shape if self.count == 1 else self.shape + "s"
        described = f"{self.size} {self.colour} {noun}" if with_size else f"{self.colour} {noun}"
        number = "an" if self.count == 1 and described[0] in "aeiou" else NUMBERS[self.count]
        return f"{number} {described}"


@dataclass(frozen=True)
class Scene:
    """One or two groups on a ground; the first is above or left of the second (`relation`)."""

    ground: str
    first: ShapeGroup
    second: ShapeGroup | None
    relation: str


def write(folder: Path, scenes: int, seed: int = 0) -> Path:
    """Draw scenes in Kaggle's layout (captions.txt and Images/), unless the folder has them.

    Args:
        folder: where to.
        scenes: how many.
        seed: of everything that is random.

    Returns:
        The folder.
    """
    caption_file = folder / "captions.txt"
    if caption_file.exists():
        return folder
    (folder / "Images").mkdir(parents=True, exist_ok=True)
    rows = [["image", "caption"]]
    rng = random.Random(seed)
    for number in range(scenes):
        scene = _random_scene(rng)
        name = f"scene_{seed}_{number:04d}.png"
        draw(scene, rng).save(folder / "Images" / name)
        rows += [[name, caption] for caption in captions(scene, rng)]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    # Last: without this file an interrupted folder is drawn again.
    caption_file.write_text(text.getvalue(), encoding="utf-8")
    return folder


def captions(scene: Scene, rng: random.Random) -> list[str]:
    """Write five sentences about a scene, as five people might."""
    first, place = scene.first, f"on the {scene.ground}"
    verb = "is" if first.count == 1 else "are"
    if scene.second is None:
        texts = [
            f"{first.words()} {verb} {place}.",
            f"There {verb} {first.words(False)} {place}.",
            f"{first.words(False)} {place}.",
            f"{first.words()} alone {place}.",
            f"A picture of {first.words()} {place}.",
            f"{first.words(False)} above the {scene.ground} with nothing else.",
        ]
    else:
        second = scene.second
        relation = "above" if scene.relation == "above" else "to the left of"
        inverse = "below" if scene.relation == "above" else "to the right of"
        second_verb = "is" if second.count == 1 else "are"
        texts = [
            f"{first.words()} {verb} {relation} {second.words()}.",
            f"{first.words(False)} {relation} {second.words(False)} {place}.",
            f"{second.words(False)} {second_verb} {inverse} {first.words(False)}.",
            f"{first.words(False)} and {second.words(False)} {place}.",
            f"A picture of {first.words()} {relation} {second.words(False)}.",
            f"{second.words()} {inverse} {first.words()} {place}.",
        ]
    return [text[0].upper() + text[1:] for text in rng.sample(texts, CAPTIONS_PER_IMAGE)]


def draw(scene: Scene, rng: random.Random) -> Image.Image:
    """Draw a scene, 128 x 128, with random offsets, so that no two images are alike."""
    sky, ground = GROUNDS[scene.ground]
    image = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), sky)
    canvas = ImageDraw.Draw(image)
    horizon = rng.randint(50, 100)
    canvas.rectangle((0, horizon, IMAGE_SIZE, IMAGE_SIZE), ground)
    for _ in range(rng.randint(30, 60)):  # short strokes: blades of grass, waves
        x, y = rng.randint(0, IMAGE_SIZE), rng.randint(horizon, IMAGE_SIZE)
        canvas.line((x, y, x + rng.randint(-6, 6), y - rng.randint(0, 4)), sky, 1)
    if scene.second is None:
        _draw_group(canvas, scene.first, FULL_BOX, rng)
        return image
    boxes = (UPPER_BOX, LOWER_BOX) if scene.relation == "above" else (LEFT_BOX, RIGHT_BOX)
    _draw_group(canvas, scene.first, boxes[0], rng)
    _draw_group(canvas, scene.second, boxes[1], rng)
    return image


def _random_scene(rng: random.Random) -> Scene:
    def random_group(colours: list[str], shapes: list[str]) -> ShapeGroup:
        return ShapeGroup(
            rng.choice((1, 1, 1, 2, 3)),
            rng.choice(("small", "big")),
            rng.choice(colours),
            rng.choice(shapes),
        )

    first = random_group(list(COLOURS), list(SHAPES))
    second = None
    if rng.random() < 0.75:
        # Another colour and shape, so that every caption tells the two groups apart.
        other_colours = [colour for colour in COLOURS if colour != first.colour]
        other_shapes = [shape for shape in SHAPES if shape != first.shape]
        second = random_group(other_colours, other_shapes)
    return Scene(rng.choice(list(GROUNDS)), first, second, rng.choice(("above", "left")))


def _draw_group(
    canvas: ImageDraw.ImageDraw, group: ShapeGroup, box: Box, rng: random.Random
) -> None:
    """Draw the shapes in a row along the longer side of a box."""
    x0, y0, x1, y1 = box
    is_wide = x1 - x0 >= y1 - y0
    length, breadth = (x1 - x0, y1 - y0) if is_wide else (y1 - y0, x1 - x0)
    step = length / group.count
    max_radius = min(step, breadth) / 2
    radius = max_radius * (0.9 if group.size == "big" else 0.5)
    for i in range(group.count):
        along = (i + 0.5) * step + rng.uniform(-0.08, 0.08) * step
        cx, cy = (x0 + along, (y0 + y1) / 2) if is_wide else ((x0 + x1) / 2, y0 + along)
        spread = max(max_radius - radius, 0)
        x, y = cx + rng.uniform(-1, 1) * spread, cy + rng.uniform(-1, 1) * spread
        _draw_shape(canvas, group.shape, x, y, radius, COLOURS[group.colour])


def _draw_shape(
    canvas: ImageDraw.ImageDraw, shape: str, x: float, y: float, r: float, colour: str
) -> None:
    """Draw one shape of radius `r` around (x, y)."""
    style = {"fill": colour, "outline": "#404040"}
    match shape:
        case "circle":
            canvas.ellipse((x - r, y - r, x + r, y + r), **style)
        case "square":
            canvas.rectangle((x - r * 0.85, y - r * 0.85, x + r * 0.85, y + r * 0.85), **style)
        case "triangle":
            canvas.polygon(_corners(x, y, [r] * 3), **style)
        case "star":
            canvas.polygon(_corners(x, y, [r, r * 0.42] * 5), **style)
        case "heart":
            canvas.polygon([(x + px * r / 17, y - py * r / 17) for px, py in _heart()], **style)


def _corners(x: float, y: float, radii: list[float]) -> list[tuple[float, float]]:
    """A polygon's corners around (x, y), the first at the top."""
    angles = [2 * math.pi * i / len(radii) - math.pi / 2 for i in range(len(radii))]
    return [(x + r * math.cos(t), y + r * math.sin(t)) for r, t in zip(radii, angles, strict=True)]


def _heart() -> list[tuple[float, float]]:
    """Points of the heart curve, which reaches from -17 to 17."""
    angles = [2 * math.pi * i / 40 for i in range(40)]
    return [
        (
            16 * math.sin(t) ** 3,
            13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t),
        )
        for t in angles
    ]
