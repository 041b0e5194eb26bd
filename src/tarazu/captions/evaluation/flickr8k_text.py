"""Flickr8k's text files, for the commands that measure metrics and baselines on them."""

from __future__ import annotations

from pathlib import Path

from tarazu.captions.data.flickr8k import read_text
from tarazu.errors import UserError


def find_file(folder: Path, name: str) -> Path:
    """Return a file of the folder, plain or gzipped.

    Raises:
        UserError: the folder has neither.
    """
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise UserError(
        f"no {name} (nor {name}.gz) here",
        location=str(folder),
        hint="give the folder of Flickr8k's text files",
    )


def read_captions(folder: Path) -> dict[str, str]:
    """Return the captions of Flickr8k.token.txt by id, `image#n`.

    Raises:
        UserError: the file is missing or a line has another form.
    """
    path = find_file(folder, "Flickr8k.token.txt")
    rows = [line.partition("\t") for line in read_text(path).splitlines() if line.strip()]
    if not all(tab and "#" in caption_id for caption_id, tab, _ in rows):
        raise UserError("expected lines of image#n, a tab and a caption", location=str(path))
    return {caption_id: caption.strip() for caption_id, _, caption in rows}


def group_by_image(captions: dict[str, str]) -> dict[str, list[str]]:
    """Return captions by image, of captions by id."""
    by_image: dict[str, list[str]] = {}
    for caption_id, caption in captions.items():
        by_image.setdefault(caption_id.rpartition("#")[0], []).append(caption)
    return by_image
