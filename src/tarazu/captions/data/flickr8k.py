"""Read Flickr8k in its three usual layouts: the official files, Kaggle's CSV, or Karpathy's JSON.

Caption files may be gzipped, images may be in folders or zips. Any other data set laid out like
one of them can be read as well.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from dataclasses import dataclass, field
from pathlib import Path

from tarazu.captions.data.image_store import ImageStore
from tarazu.errors import UserError

LISTS = {
    "train": "Flickr_8k.trainImages.txt",
    "validation": "Flickr_8k.devImages.txt",
    "test": "Flickr_8k.testImages.txt",
}
CAPTION_FILES = (
    "Flickr8k.token.txt",
    "captions.txt",
    "captions.csv",
    "dataset_flickr8k.json",
    "dataset.json",
)
KARPATHY_SPLITS = {"train": "train", "restval": "train", "val": "validation", "test": "test"}
MAX_TEXT_BYTES = 500_000_000


@dataclass
class Collection:
    """Captions by image, with the images and the split lists that came with them.

    Args:
        layout: "official", "kaggle", "karpathy", "hub" or "synthetic".
        captions: raw captions by image name.
        images: where the images are.
        lists: image names by split; empty without split lists.
        problems: what was repaired or dropped: {"reason", "kind", "count", "names"}.
        lists_truncated: whether `lists` were shortened to `data.images`.
    """

    layout: str
    captions: dict[str, list[str]]
    images: ImageStore
    lists: dict[str, list[str]] = field(default_factory=dict)
    problems: list[dict] = field(default_factory=list)
    lists_truncated: bool = False

    def add_problem(self, reason: str, kind: str, names: list[str]) -> None:
        """Note a problem with the first 20 of the names that have it; without names nothing."""
        if names:
            self.problems.append(
                {"reason": reason, "kind": kind, "count": len(names), "names": sorted(names)[:20]}
            )


def read(source: Path, caption_file: Path | None = None) -> Collection:
    """Read Flickr8k, or a data set laid out like it.

    Drops images with captions but without a file, files without captions, and empty captions;
    counts and names them in `Collection.problems`.

    Args:
        source: a folder, or a zip of images next to its caption file.
        caption_file: the captions, if they are not in the folder under a usual name.

    Returns:
        The images with at least one caption.

    Raises:
        UserError: there are no captions or no images, or a file cannot be read.
    """
    folder = source if source.is_dir() else source.parent
    if not source.exists():
        raise UserError(
            "no such folder",
            location=str(source),
            hint="set data.source to the folder with Flickr8k, or to `synthetic`",
        )
    path = caption_file or _find(folder, CAPTION_FILES)
    if path is None or not path.is_file():
        raise UserError(
            "no captions here",
            location=str(path or source),
            hint=f"put one of {', '.join(CAPTION_FILES)} (or .gz) there, or set data.captions",
        )
    layout, captions, lists = _parse(path)
    images = ImageStore.scan(source)
    if layout != "karpathy":
        lists = _official_lists(folder)
    collection = Collection(layout, captions, images, lists)
    _drop_unusable(collection)
    return collection


def karpathy_lists(folder: Path) -> dict[str, list[str]]:
    """Read the split of Karpathy and Fei-Fei (2015) from their `dataset_flickr8k.json` in a folder.

    Returns:
        Image names by split.

    Raises:
        UserError: there is no such file, or it has another format.
    """
    path = _find(folder, ("dataset_flickr8k.json", "dataset.json"))
    if path is None:
        raise UserError(
            "Karpathy's dataset_flickr8k.json is not here",
            location=str(folder),
            hint="put it there, or use split: official",
        )
    return _parse_karpathy(read_text(path), str(path))[1]


def read_text(path: Path) -> str:
    """Read a text file, gzipped or not.

    Raises:
        UserError: the file cannot be read, or unpacks to more than `MAX_TEXT_BYTES`.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            data = file.read(MAX_TEXT_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"cannot be read: {error}", location=str(path)) from None
    if len(data) > MAX_TEXT_BYTES:
        raise UserError(f"more than {MAX_TEXT_BYTES // 10**6} MB of text", location=str(path))
    return data.decode("utf-8-sig", "replace")


def _find(folder: Path, names: tuple[str, ...]) -> Path | None:
    """The first file of a usual name, in the folder or one level down."""
    for name in names:
        for pattern in (name, name + ".gz", "*/" + name, "*/" + name + ".gz"):
            paths = sorted(path for path in folder.glob(pattern) if path.is_file())
            if paths:
                return paths[0]
    return None


def _parse(path: Path) -> tuple[str, dict[str, list[str]], dict[str, list[str]]]:
    """The layout, captions by image, and the split lists of a caption file."""
    text = read_text(path)
    if path.name.removesuffix(".gz").endswith(".json"):
        return ("karpathy", *_parse_karpathy(text, str(path)))
    first_line = text.split("\n", 1)[0]
    is_official = re.search(r"#\d+\t", first_line) is not None
    captions = (_parse_official if is_official else _parse_kaggle)(text, str(path))
    if not captions:
        raise UserError("no captions in this file", location=str(path))
    return ("official" if is_official else "kaggle"), captions, {}


def _parse_official(text: str, location: str) -> dict[str, list[str]]:
    """Lines `image#n<TAB>caption`."""
    captions: dict[str, list[str]] = {}
    for number, line in enumerate(text.splitlines(), 1):
        label, tab, caption = line.partition("\t")
        name, sharp, caption_number = label.rpartition("#")
        if tab and sharp and caption_number.isdigit():
            captions.setdefault(name, []).append(caption.strip())
        elif line.strip():
            raise UserError(
                "expected image#n, a tab and a caption", location=f"{location}:{number}"
            )
    return captions


def _parse_kaggle(text: str, location: str) -> dict[str, list[str]]:
    """A CSV with the columns image and caption. A comma in an unquoted caption is kept."""
    captions: dict[str, list[str]] = {}
    reader = csv.reader(io.StringIO(text))
    if [cell.strip().lower() for cell in next(reader, [])[:2]] != ["image", "caption"]:
        raise UserError("expected the columns image,caption", location=f"{location}:1")
    try:
        for row in reader:
            if row:
                captions.setdefault(row[0].strip(), []).append(",".join(row[1:]).strip())
    except csv.Error as error:
        raise UserError(
            f"not readable as CSV: {error}", location=f"{location}:{reader.line_num}"
        ) from None
    return captions


def _parse_karpathy(text: str, location: str) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Captions by image and image names by split."""
    captions: dict[str, list[str]] = {}
    lists: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    try:
        for image in json.loads(text)["images"]:
            name = image["filename"]
            captions[name] = [sentence["raw"].strip() for sentence in image["sentences"]]
            lists[KARPATHY_SPLITS[image["split"]]].append(name)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"not Karpathy's format: {error!r}", location=location) from None
    return captions, lists


def _official_lists(folder: Path) -> dict[str, list[str]]:
    """Image names by split; empty unless all three lists are there."""
    paths = {split: _find(folder, (name,)) for split, name in LISTS.items()}
    if not all(paths.values()):
        return {}
    return {split: read_text(path).split() for split, path in paths.items()}


def _drop_unusable(collection: Collection) -> None:
    """Drop captions without an image and images without a caption, and note each as a problem."""
    captions, images = collection.captions, collection.images
    if not images.names():
        raise UserError(
            "no images here",
            location="data.source",
            hint="put the folder Images/ or the zips next to the captions",
        )
    without_file = [name for name in captions if name not in images]
    without_captions = [name for name in images.names() if name not in captions]
    refused = [f"{name}: {reason}" for name, reason in images.refused.items()]
    with_empty = [name for name, texts in captions.items() if not all(texts)]
    collection.add_problem("captions without an image file", "dropped", without_file)
    collection.add_problem("image files without captions", "dropped", without_captions)
    collection.add_problem("refused members of zips", "dropped", refused)
    collection.add_problem("empty captions", "dropped", with_empty)
    for name in list(captions):
        captions[name] = [text for text in captions[name] if text]
        if name not in images or not captions[name]:
            del captions[name]
    if not captions:
        raise UserError(
            "no image has a caption",
            location="data.source",
            hint="the names in the caption file must be the files' names",
        )
