"""Flickr8k as people have it: the official files, Kaggle's, or Karpathy's JSON; plain, gzipped or zipped."""

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
    """Captions by image, the lists that came with them, and where the pictures are.

    `problems` holds what was repaired or dropped: {"reason", "kind", "count", "names"}; `lists_truncated` tells that `lists` were cut
    to `data.images`, whosever they were.
    """

    layout: str
    captions: dict[str, list[str]]
    images: ImageStore
    lists: dict[str, list[str]] = field(default_factory=dict)
    problems: list[dict] = field(default_factory=list)
    lists_truncated: bool = False

    def add_problem(self, reason: str, kind: str, names: list[str]) -> None:
        if names:
            self.problems.append(
                {"reason": reason, "kind": kind, "count": len(names), "names": sorted(names)[:20]}
            )


def read(source: Path, caption_file: Path | None = None) -> Collection:
    """Flickr8k, or anything laid out like it, from a folder or a zip of pictures beside its captions.

    Images with captions but without a file (phantoms), files without captions, and empty captions are dropped, counted
    and named. Raises `UserError` when there are no captions or no pictures.
    """
    folder = source if source.is_dir() else source.parent
    if not source.exists():
        raise UserError(
            "no such folder",
            location=str(source),
            hint="set data.source to the folder with Flickr8k, or to `drawn`",
        )
    path = caption_file or _find(folder, CAPTION_FILES)
    if path is None or not path.is_file():
        raise UserError(
            "no captions here",
            location=str(path or source),
            hint=f"put one of {', '.join(CAPTION_FILES)} (or .gz) there, or set data.captions",
        )
    layout, captions, lists = _parse(path)
    store = ImageStore.scan(source)
    if layout != "karpathy":
        lists = _official_lists(folder)
    collection = Collection(layout, captions, store, lists)
    _drop_unusable(collection)
    return collection


def karpathy_lists(folder: Path, given: Path | None = None) -> dict[str, list[str]]:
    """The split of Karpathy and Fei-Fei 2015, from their `dataset_flickr8k.json`. Raises `UserError` without it."""
    path = given or _find(folder, ("dataset_flickr8k.json", "dataset.json"))
    if path is None:
        raise UserError(
            "Karpathy's dataset_flickr8k.json is not here",
            location=str(folder),
            hint="put it there, or use split: official",
        )
    return _parse_karpathy(read_text(path), str(path))[1]


def read_text(path: Path) -> str:
    """A text file, gzipped or not. Raises `UserError` when it is unreadable or unfolds beyond all measure."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            data = file.read(MAX_TEXT_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"cannot be read: {error}", location=str(path)) from None
    if len(data) > MAX_TEXT_BYTES:
        raise UserError(f"more than {MAX_TEXT_BYTES // 10**6} MB of text", location=str(path))
    return data.decode("utf-8-sig", "replace")


def _find(folder: Path, names: tuple[str, ...]) -> Path | None:
    for name in names:
        for pattern in (name, name + ".gz", "*/" + name, "*/" + name + ".gz"):
            found = sorted(path for path in folder.glob(pattern) if path.is_file())
            if found:
                return found[0]
    return None


def _parse(path: Path) -> tuple[str, dict[str, list[str]], dict[str, list[str]]]:
    text = read_text(path)
    if path.name.removesuffix(".gz").endswith(".json"):
        return ("karpathy", *_parse_karpathy(text, str(path)))
    first = text.split("\n", 1)[0]
    captions = (
        _parse_tokens(text, str(path))
        if re.search(r"#\d+\t", first)
        else _parse_csv(text, str(path))
    )
    if not captions:
        raise UserError("no captions in this file", location=str(path))
    return ("official" if "#" in first else "kaggle"), captions, {}


def _parse_tokens(text: str, where: str) -> dict[str, list[str]]:
    """The official form: `image#n<TAB>caption`."""
    captions: dict[str, list[str]] = {}
    for number, line in enumerate(text.splitlines(), 1):
        name, tab, caption = line.partition("\t")
        name, sharp, place = name.rpartition("#")
        if not (tab and sharp and place.isdigit()):
            if line.strip():
                raise UserError("expected image#n, a tab and a caption", location=f"{where}:{number}")
            continue
        captions.setdefault(name, []).append(caption.strip())
    return captions


def _parse_csv(text: str, where: str) -> dict[str, list[str]]:
    """Kaggle's form: a CSV with the columns image and caption. A comma in an unquoted caption is kept."""
    captions: dict[str, list[str]] = {}
    reader = csv.reader(io.StringIO(text))
    if [cell.strip().lower() for cell in next(reader, [])[:2]] != ["image", "caption"]:
        raise UserError("expected the columns image,caption", location=f"{where}:1")
    try:
        for row in reader:
            if row:
                captions.setdefault(row[0].strip(), []).append(",".join(row[1:]).strip())
    except csv.Error as error:
        raise UserError(
            f"not readable as CSV: {error}", location=f"{where}:{reader.line_num}"
        ) from None
    return captions


def _parse_karpathy(text: str, where: str) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    captions: dict[str, list[str]] = {}
    lists: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    try:
        for image in json.loads(text)["images"]:
            name = image["filename"]
            captions[name] = [sentence["raw"].strip() for sentence in image["sentences"]]
            lists[KARPATHY_SPLITS[image["split"]]].append(name)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"not Karpathy's format: {error!r}", location=where) from None
    return captions, lists


def _official_lists(folder: Path) -> dict[str, list[str]]:
    paths = {split: _find(folder, (name,)) for split, name in LISTS.items()}
    return (
        {split: read_text(path).split() for split, path in paths.items()}
        if all(paths.values())
        else {}
    )


def _drop_unusable(collection: Collection) -> None:
    """Drops what cannot be used, and says so."""
    captions, images = collection.captions, collection.images
    if not images.names():
        raise UserError(
            "no pictures here",
            location="data.source",
            hint="put the folder Images/ or the zips beside the captions",
        )
    collection.add_problem(
        "captions without an image file (phantom)",
        "dropped",
        [name for name in captions if name not in images],
    )
    collection.add_problem(
        "image files without captions",
        "dropped",
        [name for name in images.names() if name not in captions],
    )
    collection.add_problem(
        "refused members of zips",
        "dropped",
        [f"{name}: {why}" for name, why in images.refused.items()],
    )
    collection.add_problem(
        "empty captions", "dropped", [name for name, texts in captions.items() if not all(texts)]
    )
    for name in list(captions):
        captions[name] = [text for text in captions[name] if text]
        if name not in images or not captions[name]:
            del captions[name]
    if not captions:
        raise UserError(
            "no picture has a caption",
            location="data.source",
            hint="the names in the caption file must be the files' names",
        )
