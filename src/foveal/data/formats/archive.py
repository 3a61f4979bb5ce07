"""Archives of data files, unpacked once into the cache: streamed, limited, and all of it there or nothing.

An archive comes from somewhere else, so it is trusted with nothing: it cannot write outside its folder, make
anything but files and folders, or fill the disk or the memory.
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import lzma
import os
import re
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from typing import IO, TYPE_CHECKING

from filelock import FileLock

from foveal.errors import DataError
from foveal.files import sync_folder

if TYPE_CHECKING:
    from collections.abc import Callable
    from io import BufferedIOBase
    from pathlib import Path
    from typing import Self

    from foveal.data.download import ProgressReporter

FILE_LIMIT = 2_000_000  # members: ImageNet has 1.3 million images
_DEPTH_LIMIT = 32  # folders above a member
_HEADER_LIMIT = 256 << 10  # bytes of a tar member that only describes the next: it is read into memory
_PADDING_LIMIT = 16 << 20  # bytes after the last member of a tar archive
_CHUNK = 1 << 20

# What the readers raise at damaged archives: wrong checksums, ends too early, features they do not know.
_DAMAGED = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    ValueError,
    RuntimeError,
)


def unpack_once(
    archive: Path,
    into: Path,
    *,
    limit_bytes: int,
    limit_files: int = FILE_LIMIT,
    progress: ProgressReporter | None = None,
) -> Path:
    """Unpack a .tar, .tar.gz, .tar.xz or .zip, recognised by its content, unless that was done before.

    The folder in ``into`` is named after the archive's name, size and time of change: a changed archive is
    unpacked again. It appears there when it is complete. Processes that want the same one wait for the one
    that unpacks it.

    Args:
        archive: the file.
        into: the folder in which the archive gets a folder of its own; made if it is not there.
        limit_bytes: how many bytes may come out.
        limit_files: how many files and folders may come out.
        progress: told how many bytes of the archive have been worked through.

    Returns:
        The folder that holds the files.

    Raises:
        DataError: the archive is missing, of another kind, damaged, or cut off; holds nothing; holds a link,
            a device, or a name that leads out of its folder; exceeds a limit; or ``into`` cannot be written.
    """
    folder = into / _folder_name(archive)
    if folder.is_dir():
        return folder
    try:
        into.mkdir(parents=True, exist_ok=True)
        with FileLock(into / f".{folder.name}.lock"):
            if not folder.is_dir():
                _unpack_to(folder, archive, limit_bytes, limit_files, progress)
                sync_folder(into)
    except OSError as error:
        raise DataError(f"{archive}: cannot be unpacked into {into}: {error.strerror or error}") from None
    return folder


def _unpack_to(
    folder: Path, archive: Path, limit_bytes: int, limit_files: int, progress: ProgressReporter | None
) -> None:
    """Make ``folder`` in one go; the caller holds its lock."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
    try:
        partial.mkdir()
        _Unpacking(archive, partial, limit_bytes, limit_files).run(progress)
        _check_unchanged(archive, folder)
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _check_unchanged(archive: Path, folder: Path) -> None:
    if _folder_name(archive) != folder.name:
        raise DataError(f"{archive}: has changed while it was unpacked: try again")


def _folder_name(archive: Path) -> str:
    """Unique by a hash of the archive's name, size and time of change; short and visible whatever its name.

    Raises:
        DataError: it is missing, not a file, or empty.
    """
    try:
        state = archive.stat()
    except FileNotFoundError:
        raise DataError(f"{archive}: there is no such file") from None
    except OSError as error:
        raise DataError(f"{archive}: cannot be read: {error.strerror}") from None
    if not stat.S_ISREG(state.st_mode):
        raise DataError(f"{archive}: is a folder or a device, not an archive")
    if state.st_size == 0:
        raise DataError(f"{archive}: is empty")
    key = f"{archive.name}/{state.st_size}/{state.st_mtime_ns}".encode(errors="surrogateescape")
    shown = re.sub(r"[^A-Za-z0-9_.-]", "_", archive.name)[:40].lstrip(".")
    return f"{shown}-{hashlib.sha256(key).hexdigest()[:16]}"


class _Unpacking:
    """One archive on its way into an empty folder."""

    def __init__(self, archive: Path, folder: Path, limit_bytes: int, limit_files: int) -> None:
        self.archive, self.folder = archive, folder
        self.limit_bytes, self.limit_files = limit_bytes, limit_files
        self.bytes = self.members = self.files = 0

    def run(self, progress: ProgressReporter | None) -> None:
        if progress is not None:
            progress.start(f"unpacking {self.archive.name}", self.archive.stat().st_size, 0)
        try:
            self._unpack(progress.advance if progress is not None else lambda _: None)
        except (*_DAMAGED, OSError) as error:
            if isinstance(error, OSError) and error.errno not in {None, errno.EINVAL}:
                raise  # of the system; EINVAL is a seek to a place that cannot be
            why = " ".join(str(error).split()) or type(error).__name__
            raise DataError(f"{self.archive}: damaged, cut off, or not an archive: {why}") from None
        finally:
            if progress is not None:
                progress.finish()
        if not self.files:
            raise DataError(f"{self.archive}: holds no files")
        for place, _, _ in os.walk(self.folder):
            sync_folder(self.folder / place)

    def _unpack(self, advance: Callable[[int], None]) -> None:
        with self.archive.open("rb") as file:
            start = file.read(6)
            file.seek(0)
            if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
                self._zip(file, advance)
            elif start.startswith(b"\x1f\x8b"):
                with gzip.open(file) as unpacked:
                    self._tar(unpacked, file, advance)
            elif start == b"\xfd7zXZ\x00":
                with lzma.open(file) as unpacked:
                    self._tar(unpacked, file, advance)
            else:
                self._tar(file, file, advance)

    def _tar(self, stream: BufferedIOBase, file: BufferedIOBase, advance: Callable[[int], None]) -> None:
        """Members in the order in which they stand: the mode ``r|`` never goes back."""
        done = 0

        def note() -> None:
            nonlocal done
            advance(file.tell() - done)
            done = file.tell()

        with tarfile.open(fileobj=stream, mode="r|", tarinfo=_Member) as tar:
            for member in tar:
                plain = (member.isreg() or member.isdir()) and not member.issparse()
                target = self._admit(member.name, plain=plain)
                if member.isdir():
                    target.mkdir(parents=True, exist_ok=True)
                elif (content := tar.extractfile(member)) is not None:
                    self._write(target, content, member.name, note)
        padding = 0
        while chunk := stream.read(_CHUNK):  # to its end, where the checksum is
            padding += len(chunk)
            if padding > _PADDING_LIMIT:
                raise DataError(f"{self.archive}: goes on for {padding} bytes and more after its end")
        note()

    def _zip(self, file: IO[bytes], advance: Callable[[int], None]) -> None:
        with zipfile.ZipFile(file) as archive:
            self._check_directory(archive, file)
            for member in archive.infolist():
                kind = stat.S_IFMT(member.external_attr >> 16)  # 0 where it was not made under Unix
                target = self._admit(member.filename, plain=kind in {0, stat.S_IFREG, stat.S_IFDIR})
                if member.is_dir():
                    target.mkdir(parents=True, exist_ok=True)
                else:
                    with archive.open(member) as content:
                        self._write(target, content, member.filename)
                advance(member.compress_size)

    def _check_directory(self, archive: zipfile.ZipFile, file: IO[bytes]) -> None:
        """``zipfile`` does not compare the number of members; one damaged length hides some of them."""
        file.seek(-22 - len(archive.comment), os.SEEK_END)
        mark, _, count = struct.unpack("<4s6sH", file.read(12))
        found = len(archive.infolist())
        if mark != b"PK\x05\x06" or count not in {found, 0xFFFF}:  # 0xFFFF: so many are counted elsewhere
            raise DataError(f"{self.archive}: damaged: {found} of {count} members can be found")

    def _admit(self, name: str, *, plain: bool) -> Path:
        """Where a member goes, if it may go anywhere."""
        if not plain:
            raise DataError(f"{self.archive}: {name!r} is a link or a device, not a file or a folder")
        parts = [part for part in re.split(r"[/\\]", name) if part not in {"", "."}]
        if ".." in parts or re.match(r"[/\\]|[A-Za-z]:", name) or "\0" in name:
            raise DataError(f"{self.archive}: {name!r} leads out of the folder it is unpacked into")
        if len(parts) > _DEPTH_LIMIT:
            raise DataError(f"{self.archive}: {name!r} is more than {_DEPTH_LIMIT} folders deep")
        self.members += 1
        if self.members > self.limit_files:
            raise DataError(f"{self.archive}: holds more than {self.limit_files} files and folders")
        return self.folder.joinpath(*parts)

    def _write(
        self, target: Path, content: IO[bytes], name: str, note: Callable[[], None] = lambda: None
    ) -> None:
        if target.exists():
            raise DataError(f"{self.archive}: {name!r} is in it twice")
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as out, content:
            while chunk := content.read(_CHUNK):
                self._count(len(chunk))
                out.write(chunk)
                note()
            out.flush()
            os.fsync(out.fileno())
        self.files += 1

    def _count(self, some: int) -> None:
        self.bytes += some
        if self.bytes > self.limit_bytes:
            raise DataError(f"{self.archive}: unpacks to more than {self.limit_bytes} bytes")


class _Member(tarfile.TarInfo):
    """A member of a tar archive. ``tarfile`` takes what is not a header for the end; here it is an error."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        try:
            member = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if len(buf) == tarfile.BLOCKSIZE and not any(buf):  # the zeros that end an archive
                raise
            raise tarfile.ReadError(str(error)) from None
        file = member.type in tarfile.REGULAR_TYPES and member.type != tarfile.GNUTYPE_SPARSE
        if member.size < 0 or (not file and member.size > _HEADER_LIMIT):
            raise tarfile.ReadError(f"a member of type {member.type!r} with {member.size} bytes")
        return member
