"""Read images by name from folders, or from zip archives that are never unpacked."""

from __future__ import annotations

import os
import stat
import zipfile
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from tarazu.errors import UserError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
MAX_MEMBER_BYTES = 64_000_000
MAX_COMPRESSION_RATIO = 200  # unpacked over packed size; photographs stay near 1


@dataclass
class ImageStore:
    """Images by file name.

    Args:
        files: images that are files.
        members: images in zip archives: the archive and the member.
        refused: names of the members that are not read, with the reason.
        archives: open archives of the process `process_id`.
    """

    files: dict[str, Path] = field(default_factory=dict)
    members: dict[str, tuple[Path, zipfile.ZipInfo]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    archives: dict[Path, zipfile.ZipFile] = field(default_factory=dict)
    process_id: int = field(default_factory=os.getpid)

    @classmethod
    def scan(cls, source: Path) -> ImageStore:
        """Find all images of a folder (two levels down), of the zips in it, or of one zip.

        Raises:
            UserError: an archive cannot be read.
        """
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
        """All names, sorted."""
        return sorted(self.files.keys() | self.members.keys())

    def __contains__(self, name: str) -> bool:
        return name in self.files or name in self.members

    def read(self, name: str) -> bytes:
        """Read the bytes of an image.

        Raises:
            UserError: the file or the archive's member cannot be read.
        """
        try:
            if name in self.files:
                return self.files[name].read_bytes()
            path, member = self.members[name]
            with self._open_zip(path).open(member) as file:
                return file.read(MAX_MEMBER_BYTES)
        except (OSError, zipfile.BadZipFile, RuntimeError, EOFError) as error:
            # RuntimeError: the member is encrypted
            raise UserError(f"cannot be read: {error}", location=name) from None

    def version(self, name: str) -> str:
        """A cache key that changes with the image's bytes: size and time, or size and checksum."""
        if name in self.files:
            status = self.files[name].stat()
            return f"{name}:{status.st_size}:{status.st_mtime_ns}"
        member = self.members[name][1]
        return f"{name}:{member.file_size}:{member.CRC}"

    def _open_zip(self, path: Path) -> zipfile.ZipFile:
        """Open an archive once per process: a forked child shares its parent's file position."""
        if os.getpid() != self.process_id:
            self.process_id, self.archives = os.getpid(), {}
        if path not in self.archives:
            self.archives[path] = zipfile.ZipFile(path)
        return self.archives[path]

    def _add_zip(self, path: Path) -> None:
        """Add the images of an archive; of two with one name, the first is kept."""
        try:
            archive = self._open_zip(path)
        except (OSError, zipfile.BadZipFile) as error:
            raise UserError(
                f"not a zip that can be read: {error}",
                location=str(path),
                hint="download it again",
            ) from None
        for member in archive.infolist():
            name = PurePosixPath(member.filename).name
            is_image = not member.is_dir() and name.lower().endswith(EXTENSIONS)
            if not is_image or "__MACOSX" in member.filename:
                continue
            reason = _reason_to_refuse(member)
            if reason:
                self.refused[member.filename] = reason
            elif name not in self:
                self.members[name] = (path, member)


def _reason_to_refuse(member: zipfile.ZipInfo) -> str:
    """Why a member is not read, or "". The names and sizes of an archive are its maker's claims."""
    parts = PurePosixPath(member.filename.replace("\\", "/")).parts
    if ".." in parts or member.filename.startswith(("/", "\\")):
        return "a path that leaves the archive"
    if stat.S_ISLNK(member.external_attr >> 16):
        return "a link"
    max_bytes = min(MAX_MEMBER_BYTES, MAX_COMPRESSION_RATIO * max(member.compress_size, 1))
    if member.file_size > max_bytes:
        return "unpacks to a suspicious size"
    return ""
