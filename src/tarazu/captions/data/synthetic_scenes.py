"""Scenes of shapes, drawn by the project itself with five captions each: a data set that needs no download.

Small enough for a test, rich enough to be wrong about: one or two things, their number, colour, size and relation.
"""

from __future__ import annotations

import csv
import io
import math
import random
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

SIDE = 128
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
GROUNDS = {
    "grass": ("#8fc7ee", "#5fae4b"),
    "sand": ("#bfe3f5", "#e2c88f"),
    "snow": ("#c9d6e2", "#eef3f7"),
    "water": ("#d9ecf7", "#2f7fb5"),
    "road": ("#b9c4cc", "#70757a"),
}
NUMBERS = {1: "a", 2: "two", 3: "three"}
FIVE = 5


@dataclass(frozen=True)
class ShapeGroup:
    """`count` shapes of one kind and colour."""

    count: int
    size: str  # "small" or "big"
    colour: str
    shape: str

    def words(self, sized: bool = True) -> str:
        noun = self.shape if self.count == 1 else self.shape + "s"
        described = f"{self.size} {self.colour} {noun}" if sized else f"{self.colour} {noun}"
        number = "an" if self.count == 1 and described[0] in "aeiou" else NUMBERS[self.count]
        return f"{number} {described}"


@dataclass(frozen=True)
class Scene:
    """One or two things on a ground; the first is `relation` ("above", "left") the second."""

    ground: str
    first: ShapeGroup
    second: ShapeGroup | None
    relation: str


def write(folder: Path, scenes: int, seed: int = 0) -> Path:
    """Draws `scenes` scenes into `folder` in Kaggle's layout (captions.txt and Images/), unless they are there
    already."""
    listing = folder / "captions.txt"
    if listing.exists():
        return folder
    (folder / "Images").mkdir(parents=True, exist_ok=True)
    rows = [["image", "caption"]]
    dice = random.Random(seed)
    for number in range(scenes):
        scene = _scene(dice)
        name = f"scene_{seed}_{number:04d}.png"
        draw(scene, dice).save(folder / "Images" / name)
        rows += [[name, caption] for caption in captions(scene, dice)]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    listing.write_text(
        text.getvalue(), encoding="utf-8"
    )  # last, so that a half-drawn folder is drawn again
    return folder


def captions(scene: Scene, dice: random.Random) -> list[str]:
    """Five sentences about a scene, as five people might put it."""
    one, place = scene.first, f"on the {scene.ground}"
    verb = "is" if one.count == 1 else "are"
    if scene.second is None:
        texts = [
            f"{one.words()} {verb} {place}.",
            f"There {verb} {one.words(False)} {place}.",
            f"{one.words(False)} {place}.",
            f"{one.words()} alone {place}.",
            f"A picture of {one.words()} {place}.",
            f"{one.words(False)} above the {scene.ground} with nothing else.",
        ]
    else:
        two = scene.second
        there = "above" if scene.relation == "above" else "to the left of"
        back = "below" if scene.relation == "above" else "to the right of"
        other = "is" if two.count == 1 else "are"
        texts = [
            f"{one.words()} {verb} {there} {two.words()}.",
            f"{one.words(False)} {there} {two.words(False)} {place}.",
            f"{two.words(False)} {other} {back} {one.words(False)}.",
            f"{one.words(False)} and {two.words(False)} {place}.",
            f"A picture of {one.words()} {there} {two.words(False)}.",
            f"{two.words()} {back} {one.words()} {place}.",
        ]
    return [text[0].upper() + text[1:] for text in dice.sample(texts, FIVE)]


def draw(scene: Scene, dice: random.Random) -> Image.Image:
    """The picture, 128 x 128, with everything a little out of place, so that no two are alike."""
    sky, ground = GROUNDS[scene.ground]
    picture = Image.new("RGB", (SIDE, SIDE), sky)
    brush = ImageDraw.Draw(picture)
    horizon = dice.randint(50, 100)
    brush.rectangle((0, horizon, SIDE, SIDE), ground)
    for _ in range(dice.randint(30, 60)):  # flecks of grass, sand, snow, waves
        x, y = dice.randint(0, SIDE), dice.randint(horizon, SIDE)
        brush.line((x, y, x + dice.randint(-6, 6), y - dice.randint(0, 4)), sky, 1)
    whole, upper, lower = (6, 6, 122, 122), (6, 4, 122, 62), (6, 66, 122, 124)
    left, right = (4, 20, 62, 110), (66, 20, 124, 110)
    if scene.second is None:
        _place(brush, scene.first, whole, dice)
    else:
        a, b = (upper, lower) if scene.relation == "above" else (left, right)
        _place(brush, scene.first, a, dice)
        _place(brush, scene.second, b, dice)
    return picture


def _scene(dice: random.Random) -> Scene:
    def thing(colours: list[str], shapes: list[str]) -> ShapeGroup:
        return ShapeGroup(
            dice.choice((1, 1, 1, 2, 3)),
            dice.choice(("small", "big")),
            dice.choice(colours),
            dice.choice(shapes),
        )

    first = thing(list(COLOURS), list(SHAPES))
    second = None
    if dice.random() < 0.75:
        second = thing(
            [c for c in COLOURS if c != first.colour], [s for s in SHAPES if s != first.shape]
        )
    return Scene(dice.choice(list(GROUNDS)), first, second, dice.choice(("above", "left")))


def _place(
    brush: ImageDraw.ImageDraw,
    thing: ShapeGroup,
    box: tuple[int, int, int, int],
    dice: random.Random,
) -> None:
    """`thing.count` shapes side by side (or one below the other) within `box`."""
    x0, y0, x1, y1 = box
    wide = x1 - x0 >= y1 - y0
    step = (x1 - x0 if wide else y1 - y0) / thing.count
    room = min(step, y1 - y0 if wide else x1 - x0) / 2
    radius = room * (0.9 if thing.size == "big" else 0.5)
    for i in range(thing.count):
        along = (i + 0.5) * step + dice.uniform(-0.08, 0.08) * step
        cx, cy = (x0 + along, (y0 + y1) / 2) if wide else ((x0 + x1) / 2, y0 + along)
        spread = max(room - radius, 0)
        _shape(
            brush,
            thing.shape,
            cx + dice.uniform(-1, 1) * spread,
            cy + dice.uniform(-1, 1) * spread,
            radius,
            COLOURS[thing.colour],
        )


def _shape(
    brush: ImageDraw.ImageDraw, shape: str, x: float, y: float, r: float, colour: str
) -> None:
    line = {"fill": colour, "outline": "#404040"}
    match shape:
        case "circle":
            brush.ellipse((x - r, y - r, x + r, y + r), **line)
        case "square":
            brush.rectangle((x - r * 0.85, y - r * 0.85, x + r * 0.85, y + r * 0.85), **line)
        case "triangle":
            brush.polygon(_around(x, y, [r] * 3), **line)
        case "star":
            brush.polygon(_around(x, y, [r, r * 0.42] * 5), **line)
        case "heart":
            turns = [2 * math.pi * i / 40 for i in range(40)]
            points = [
                (
                    16 * math.sin(t) ** 3,
                    13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t),
                )
                for t in turns
            ]
            brush.polygon([(x + px * r / 17, y - py * r / 17) for px, py in points], **line)


def _around(x: float, y: float, radii: list[float]) -> list[tuple[float, float]]:
    """A polygon's corners, the first at the top."""
    turns = [2 * math.pi * i / len(radii) - math.pi / 2 for i in range(len(radii))]
    return [(x + r * math.cos(t), y + r * math.sin(t)) for r, t in zip(radii, turns, strict=True)]
