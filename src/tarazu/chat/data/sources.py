"""Raw rows of a source, one after another, each with its location.

A source is one of:

    a file          .jsonl, .ndjson, .json, .csv, .tsv or .parquet; all but Parquet also as .gz
    a folder        of such files, read in the order of their names
    samples:NAME    a file that is part of this package
    a hub name      owner/name, owner/name:split or owner/name@revision:split, read as a stream
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import tarazu
from tarazu.chat.data.row_readers import (
    EXTENSIONS,
    RowLocation,
    Rows,
    UnreadableRow,
    extension,
    read_file,
)
from tarazu.errors import UserError
from tarazu.storage.hub_status import hub_is_reachable

__all__ = ["RowLocation", "UnreadableRow", "fingerprint", "iter_rows", "local_path"]

HUB_TIMEOUT_SECONDS = 20
_LOCAL_FILE_HINT = "give a local .jsonl, .json, .csv or .parquet file: --set data.source=PATH"
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?(:[\w.\[\]%:-]+)?")


def iter_rows(source: str | Path) -> Rows:
    """Yield (location, row) of a source in its order.

    Raises:
        UserError: there is no such source, or nothing in it can be read.
    """
    path = local_path(source)
    if path.is_dir():
        files = _files(path)
        for file in files:
            for location, row in read_file(file):
                if len(files) > 1:
                    location = f"{file.relative_to(path)}:{location}"
                yield location, row
    elif path.exists():
        yield from read_file(path)
    elif _is_hub_name(source):
        yield from _read_hub(str(source))
    else:
        raise _missing(path)


def local_path(source: str | Path) -> Path:
    """The path that a source names; whether something is there is not checked."""
    text = str(source)
    if text.startswith("samples:"):
        return Path(tarazu.__file__).parent / "samples" / text.removeprefix("samples:")
    return Path(text).expanduser()


def fingerprint(source: str | Path) -> str:
    """SHA-256 of a source's content.

    Of a file its bytes, of a folder all names and bytes, of a hub name its commit.

    Raises:
        UserError: there is no such source, or it cannot be read.
    """
    path = local_path(source)
    if path.is_dir():
        digest = hashlib.sha256()
        for file in _files(path):
            digest.update(f"{file.relative_to(path)}\0{_sha256(file)}\n".encode())
        return digest.hexdigest()
    if path.is_file():
        return _sha256(path)
    if not _is_hub_name(source):
        raise _missing(path)
    return hashlib.sha256(f"{source}\0{_hub_commit(str(source))}".encode()).hexdigest()


def _is_hub_name(source: str | Path) -> bool:
    """Whether a source that is not on this machine can be one on the hub."""
    return not extension(local_path(source)) and bool(_HUB_NAME.fullmatch(str(source)))


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"the file cannot be read: {error.strerror}", location=str(path)) from None


def _files(folder: Path) -> list[Path]:
    """All data files of a folder and its subfolders, except hidden ones, sorted."""
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and extension(path) and not path.name.startswith(".")
    )
    if not files:
        raise UserError(
            "no data file in this folder",
            location=str(folder),
            hint=f"put files there that end in {', '.join(EXTENSIONS)}",
        )
    return files


def _missing(path: Path) -> UserError:
    return UserError(
        "no such file or folder",
        location=str(path),
        hint="give a file, a folder, or a hub name (owner/name)",
    )


def _hub_parts(source: str) -> tuple[str, str | None, str]:
    """(name, revision, split) of owner/name@revision:split; the split is "train" by default."""
    name, _, split = source.partition(":")
    name, _, revision = name.partition("@")
    return name, revision or None, split or "train"


def _hub_commit(source: str) -> str:
    """The commit hash of a data set on the hub."""
    from huggingface_hub import HfApi

    name, revision, _ = _hub_parts(source)
    if not hub_is_reachable():
        raise UserError(
            "no such file here, and the Hugging Face hub does not answer "
            "(no network, or HF_HUB_OFFLINE is set)",
            location=source,
            hint=_LOCAL_FILE_HINT,
        )
    try:
        info = HfApi().dataset_info(name, revision=revision, timeout=HUB_TIMEOUT_SECONDS)
        return info.sha or ""
    except Exception as error:
        raise _hub_error(source, error) from None


def _read_hub(source: str) -> Rows:
    _hub_commit(source)  # without a network this fails at once, with a clear message
    from datasets import load_dataset

    name, revision, split = _hub_parts(source)
    try:
        yield from enumerate(load_dataset(name, split=split, revision=revision, streaming=True), 1)
    except UserError:
        raise
    except Exception as error:
        raise _hub_error(source, error) from None


def _hub_error(source: str, error: Exception) -> UserError:
    """One of the hub's many exceptions as a `UserError`: not allowed, missing, or not reachable."""
    kind, name = type(error).__name__, _hub_parts(source)[0]
    status = getattr(getattr(error, "response", None), "status_code", None)
    missing = ("RepositoryNotFoundError", "DatasetNotFoundError", "RevisionNotFoundError")
    if kind == "GatedRepoError" or status == 403:
        page = f"https://huggingface.co/datasets/{name}"
        message = "this data set is gated"
        hint = f"accept its terms on {page}, then `hf auth login`"
    elif status in (401, 404) or kind in missing:
        message = "neither a file here nor a data set on the Hugging Face hub"
        hint = "check the name; for a private or gated one, `hf auth login` first"
    elif isinstance(error, ValueError):
        message = f"the data set cannot be read as asked: {str(error).splitlines()[0]}"
        hint = ""
    else:
        message = f"no such file here, and the Hugging Face hub could not be reached ({kind})"
        hint = _LOCAL_FILE_HINT
    return UserError(message, location=source, hint=hint)
