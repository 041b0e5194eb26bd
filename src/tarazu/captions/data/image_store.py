"""Where pictures lie: files in folders, or members of zips that are read in place and never unpacked."""

from __future__ import annotations

import os
import stat
import zipfile
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from tarazu.errors import UserError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
MAX_MEMBER_BYTES = 64_000_000
MAX_COMPRESSION_RATIO = 200  # unpacked over packed; photographs stay near 1


@dataclass
class ImageStore:
    """Pictures by file name.

    `refused` names the members of zips that were passed over, with the reason.
    """

    files: dict[str, Path] = field(default_factory=dict)
    members: dict[str, tuple[Path, zipfile.ZipInfo]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    opened: dict[Path, zipfile.ZipFile] = field(default_factory=dict)
    process: int = field(default_factory=os.getpid)

    @classmethod
    def scan(cls, source: Path) -> ImageStore:
        """All pictures in a folder (two levels down), in the zips of a folder, or in one zip."""
        store = cls()
        if source.is_file():
            store._add_zip(source)
            return store
        for path in sorted([*source.glob("*"), *source.glob("*/*"), *source.glob("*/*/*")]):
            if path.suffix.lower() in EXTENSIONS and path.is_file():
                store.files.setdefault(path.name, path)
            elif path.suffix.lower() == ".zip" and path.is_file():
                store._add_zip(path)
        return store

    def names(self) -> list[str]:
        return sorted(self.files.keys() | self.members.keys())

    def __contains__(self, name: str) -> bool:
        return name in self.files or name in self.members

    def read(self, name: str) -> bytes:
        """The bytes of a picture. Raises `UserError`."""
        try:
            if name in self.files:
                return self.files[name].read_bytes()
            path, member = self.members[name]
            with self._zip(path).open(member) as file:
                return file.read(MAX_MEMBER_BYTES)
        except (
            OSError,
            zipfile.BadZipFile,
            RuntimeError,
            EOFError,
        ) as error:  # RuntimeError: encrypted
            raise UserError(f"cannot be read: {error}", location=name) from None

    def stamp(self, name: str) -> str:
        """What changes when the picture's bytes change: for caches."""
        if name in self.files:
            status = self.files[name].stat()
            return f"{name}:{status.st_size}:{status.st_mtime_ns}"
        member = self.members[name][1]
        return f"{name}:{member.file_size}:{member.CRC}"

    def __getstate__(self) -> dict:
        """Open zips do not travel to another process."""
        return self.__dict__ | {"opened": {}}

    def _zip(self, path: Path) -> zipfile.ZipFile:
        """Opened once in every process: parent and child would move one file position."""
        if os.getpid() != self.process:
            self.process, self.opened = os.getpid(), {}
        if path not in self.opened:
            self.opened[path] = zipfile.ZipFile(path)
        return self.opened[path]

    def _add_zip(self, path: Path) -> None:
        try:
            archive = self._zip(path)
        except (OSError, zipfile.BadZipFile) as error:
            raise UserError(
                f"not a zip that can be read: {error}", location=str(path), hint="fetch it again"
            ) from None
        for member in archive.infolist():
            name = PurePosixPath(member.filename).name
            if (
                member.is_dir()
                or not name.lower().endswith(EXTENSIONS)
                or "__MACOSX" in member.filename
            ):
                continue
            reason = _doubt(member)
            if reason:
                self.refused[member.filename] = reason
            elif name not in self:
                self.members[name] = (path, member)


def _doubt(member: zipfile.ZipInfo) -> str:
    """Why a member is not read, or nothing."""
    parts = PurePosixPath(member.filename.replace("\\", "/")).parts
    if ".." in parts or member.filename.startswith(("/", "\\")):
        return "a path that leaves the archive"
    if stat.S_ISLNK(member.external_attr >> 16):
        return "a link"
    if member.file_size > MAX_MEMBER_BYTES or member.file_size > MAX_COMPRESSION_RATIO * max(
        member.compress_size, 1
    ):
        return "unfolds to a suspicious size"
    return ""
