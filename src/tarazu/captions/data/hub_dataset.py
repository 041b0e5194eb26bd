"""Flickr8k by name from the Hugging Face hub, where there is a network: written once to disk in Kaggle's layout."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

from tarazu.captions.data import flickr8k
from tarazu.captions.data.flickr8k import Collection
from tarazu.errors import UserError
from tarazu.storage.atomic_io import write_atomic
from tarazu.storage.hub_status import hub_is_reachable

CAPTION_COLUMNS = ("captions", "caption", "sentences", "text")


def is_hub_name(source: str) -> bool:
    """owner/name, as the hub has it, and no path."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", source) is not None and not source.startswith(".")


def read(name: str, cache: Path) -> Collection:
    """A data set with an image column and one or more caption columns. Raises `UserError` when it cannot be had."""
    home = cache / name.replace("/", "--")
    if not (home / "captions.txt").exists():
        if not hub_is_reachable():
            raise UserError(
                "no such folder here, and the Hugging Face hub does not answer (no network, or HF_HUB_OFFLINE is set)",
                location=name,
                hint="give a folder with Flickr8k: --set data.source=FOLDER",
            )
        _fetch(name, home)
    collection = flickr8k.read(home)
    collection.layout = "hub"
    return collection


def _fetch(name: str, home: Path) -> None:
    from datasets import Image, load_dataset

    try:
        parts = load_dataset(name)
    except Exception as error:  # no network, no such name, a script that may not run: all end the same way for the user
        raise UserError(
            f"{name} cannot be had from the hub: {str(error).splitlines()[0][:200]}",
            location="data.source",
            hint="give a folder with Flickr8k, or `drawn`",
        ) from None
    rows = [["image", "caption"]]
    for part, table in parts.items():
        columns = [c for c in table.column_names if c.startswith(CAPTION_COLUMNS)]
        if "image" not in table.column_names or not columns:
            raise UserError(
                f"no columns image and caption among {', '.join(table.column_names)}", location=name
            )
        for number, row in enumerate(table.cast_column("image", Image(decode=False))):
            file = Path(row["image"].get("path") or f"{part}_{number:05d}.jpg").name
            write_atomic(home / "Images" / file, row["image"]["bytes"])
            texts = [
                text
                for column in columns
                for text in (row[column] if isinstance(row[column], list) else [row[column]])
            ]
            rows += [[file, text] for text in texts]
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    write_atomic(
        home / "captions.txt", out.getvalue().encode()
    )  # last: a cut download starts again
