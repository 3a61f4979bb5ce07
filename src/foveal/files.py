"""Writing files so that a crash leaves the old content or the new, and locks that death releases."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from foveal.errors import RunError
from foveal.faults import fault_point

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from io import FileIO

_WRITE_BACK = 4 << 20  # bytes: the disk is kept busy, and not with small requests


def sync_folder(folder: Path) -> None:
    """Make the names in ``folder`` durable: renames and new files survive a power cut after this."""
    if os.name == "nt":  # Windows has no such call; its renames are journalled
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_synced(path: Path, content: bytes | memoryview) -> None:
    """Write a new file and force it to the disk before returning."""
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


class OutputFile:
    """A new file that the disk begins to store while the rest of it is still being written.

    Attributes:
        size: bytes written.
    """

    def __init__(self, file: FileIO) -> None:
        """Write to ``file``, which is empty and has no buffer."""
        self._file = file
        self._begun = 0  # bytes that the disk was told to store
        self.size = 0

    def write(self, content: memoryview) -> None:
        """Write bytes after the others."""
        write_all(self._file, content)
        self.size += len(content)
        if self.size - self._begun >= _WRITE_BACK and hasattr(os, "posix_fadvise"):
            # Linux begins to store what it is told will not be needed; what is not stored yet stays cached.
            os.posix_fadvise(self._file.fileno(), self._begun, 0, os.POSIX_FADV_DONTNEED)
            self._begun = self.size


def write_all(file: FileIO, content: memoryview) -> None:
    """Write all bytes to a file without a buffer, a call of which may write less than it was given."""
    while content:
        content = content[file.write(content) :]


def write_atomically(path: Path, content: bytes) -> None:
    """Replace ``path`` by ``content``; a crash at any moment leaves all of the old file or all of the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), 0o666 & ~_umask())
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def remove_folder(folder: Path, spared: Callable[[], bool] = lambda: False) -> bool:
    """Delete a folder; it is renamed first, so that nobody ever sees a part of it under its own name.

    Args:
        folder: what to delete; a crash leaves it as it is, or as ``.NAME.deleted``.
        spared: asked when nobody finds the folder under its name any more; if so, it is put back. Who wants
            to keep a folder notes that first and looks for it then: so neither can miss the other.

    Returns:
        Whether it was deleted.
    """
    doomed = folder.with_name(f".{folder.name.removeprefix('.')}.deleted")
    discard(doomed)
    folder.rename(doomed)
    if spared():
        doomed.rename(folder)
        return False
    sync_folder(folder.parent)  # else a power cut could bring its name back, but not its files
    if doomed.is_dir() and not doomed.is_symlink():
        for path in [path for path in doomed.iterdir() if not path.is_dir()][:1]:
            path.unlink()
    fault_point("deletion")
    discard(doomed)
    return True


def discard(path: Path) -> None:
    """Delete a folder with all that is in it, a file, or a link but not what it leads to, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def identity(folder: Path) -> tuple[int, int] | None:
    """What tells a folder from another that took its place; None where nothing is."""
    try:
        found = folder.lstat()
    except OSError:
        return None
    return found.st_ino, found.st_ctime_ns  # renaming it changes the second


@contextmanager
def exclusive_lock(path: Path, refusal: str) -> Iterator[None]:
    """Hold an exclusive lock on ``path`` for the duration; the system releases it when the process dies.

    Raises:
        RunError: with the text ``refusal``, when another live process holds it.
    """
    try:
        with FileLock(path, timeout=0):
            yield
    except Timeout:
        raise RunError(refusal) from None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
