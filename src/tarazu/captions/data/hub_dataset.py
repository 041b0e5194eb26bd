"""Download a captioning data set from the Hugging Face Hub, into a folder in Kaggle's layout."""

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

CAPTION_COLUMNS = ("captions", "caption", "sentences", "text")  # beginnings of column names


def is_hub_name(source: str) -> bool:
    """Tell whether a source looks like owner/name, as the Hub has it, and not like a path."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", source) is not None and not source.startswith(".")


def read(name: str, cache: Path) -> Collection:
    """Read a data set that has an image column and one or more caption columns.

    Args:
        name: owner/name on the Hub.
        cache: the folder that keeps downloaded data sets.

    Returns:
        The collection, with the layout "hub".

    Raises:
        UserError: the data set cannot be downloaded or has other columns.
    """
    folder = cache / name.replace("/", "--")
    if not (folder / "captions.txt").exists():
        if not hub_is_reachable():
            raise UserError(
                "no such folder here, and the Hugging Face Hub does not answer "
                "(no network, or HF_HUB_OFFLINE is set)",
                location=name,
                hint="give a folder with Flickr8k: --set data.source=FOLDER",
            )
        _download(name, folder)
    collection = flickr8k.read(folder)
    collection.layout = "hub"
    return collection


def _download(name: str, folder: Path) -> None:
    """Write a data set's images, and then its captions."""
    from datasets import Image, load_dataset

    try:
        splits = load_dataset(name)
    except Exception as error:  # no network, no such name, a script that may not run
        raise UserError(
            f"{name} cannot be downloaded from the Hub: {str(error).splitlines()[0][:200]}",
            location="data.source",
            hint="give a folder with Flickr8k, or `synthetic`",
        ) from None
    lines = [["image", "caption"]]
    for split, table in splits.items():
        columns = [column for column in table.column_names if column.startswith(CAPTION_COLUMNS)]
        if "image" not in table.column_names or not columns:
            raise UserError(
                f"no columns image and caption among {', '.join(table.column_names)}",
                location=name,
            )
        for number, row in enumerate(table.cast_column("image", Image(decode=False))):
            file_name = Path(row["image"].get("path") or f"{split}_{number:05d}.jpg").name
            write_atomic(folder / "Images" / file_name, row["image"]["bytes"])
            for column in columns:
                texts = row[column] if isinstance(row[column], list) else [row[column]]
                lines += [[file_name, text] for text in texts]
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(lines)
    # Last: without this file an interrupted download starts again.
    write_atomic(folder / "captions.txt", out.getvalue().encode())
