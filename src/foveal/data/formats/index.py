"""Sidecar files: what was learnt by reading the data once, kept until the data change.

An index holds arrays (where records are, labels, image sizes, checksums) and the state (size, time of change)
of every file they were made from. It is rebuilt when a file's state differs, and is only ever a cache: a
damaged one is rebuilt, one that cannot be written beside the data goes to the user's cache folder. It is a
hidden file and not in a folder of its own, which others would take for that of a class.

A sidecar is a ZIP archive of ``.npy`` files, stored and not compressed, as ``numpy.savez`` writes them. Its
CRCs are verified; nothing in it is executed, and nothing is allocated for what it claims.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import zipfile
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from foveal.errors import DataError
from foveal.files import write_atomically

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    Arrays = Mapping[str, NDArray[np.generic]]

_STATES, _SEAL = ".states", ".seal"  # members that are not of the caller's arrays


@dataclass(frozen=True)
class UsedIndex:
    """An index that was used: its sidecar, None where none could be written, and whether it was built now."""

    path: Path | None
    built: bool


@dataclass(frozen=True)
class _Watch:
    used: list[UsedIndex]
    rebuild: bool


_WATCH: ContextVar[_Watch | None] = ContextVar("indexes in use", default=None)


def load_or_build(
    paths: Sequence[Path | str],
    purpose: str,
    build: Callable[[], Arrays],
    *,
    origin: Sequence[Path | str] = (),
    rebuild: bool = False,
) -> Arrays:
    """The index of some files: from its sidecar where that is good, else built, and written.

    Processes may do this at the same time: each builds it for itself, and the last one's sidecar stays.

    Args:
        paths: the files, in an order that matters.
        purpose: what the index is for, with every option it depends on: ``"tfrecord 1 image=image/encoded"``.
            Its first word is in the sidecar's name.
        build: makes the arrays; of any dtype but object. Strings are ``U`` arrays.
        origin: what the list of files follows from: the folder they were found in, the tables that name them.
            There is one sidecar for an origin and a purpose, which an index of a changed list replaces; by
            default one for each list, so that parts and patterns that share a folder or files have their own.
        rebuild: build it even where it is good.

    Returns:
        What ``build`` gave, at some time. The arrays of a sidecar cannot be written to.

    Raises:
        DataError: a file is missing or unreadable, or changed while the index was built.
    """
    before = states(paths)
    places = _places(paths, purpose, origin or paths)
    watch = _WATCH.get() or _Watch([], rebuild=False)
    if not (rebuild or watch.rebuild):
        for place, identity in places:
            if (found := _load(place, identity, before)) is not None:
                watch.used.append(UsedIndex(place, built=False))
                return found
    arrays = build()
    changed = np.flatnonzero((states(paths) != before).any(axis=1))
    if changed.size:
        raise DataError(
            f"{printable(paths[changed[0]])}: changed while it was being indexed: "
            "try again when nothing writes to it"
        )
    watch.used.append(UsedIndex(_store(places, arrays, before), built=True))
    return arrays


@contextmanager
def watched(*, rebuild: bool = False) -> Iterator[list[UsedIndex]]:
    """The indexes that this thread uses within, as a growing list; with ``rebuild``, all are built anew."""
    watch = _Watch([], rebuild)
    token = _WATCH.set(watch)
    try:
        yield watch.used
    finally:
        _WATCH.reset(token)


def states(paths: Sequence[Path | str]) -> NDArray[np.int64]:
    """Size in bytes and time of change in ns since 1970 of files, int64 ``[N, 2]``.

    Raises:
        DataError: one is missing, unreadable, or not a file.
    """
    return np.fromiter(_states(paths), np.dtype((np.int64, 2)), len(paths))


def printable(path: Path | str) -> str:
    """A path for a message: the bytes of a name that are no text in the system's encoding as escapes."""
    return os.fsencode(path).decode(errors="backslashreplace")


def _states(paths: Sequence[Path | str]) -> Iterator[tuple[int, int]]:
    for path in paths:
        try:
            now = os.stat(path)  # noqa: PTH116 - a Path for each of a million files takes longer than this
        except FileNotFoundError:
            raise DataError(f"{printable(path)}: there is no such file") from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise DataError(f"{printable(path)}: cannot be opened: {reason}") from None
        if not stat.S_ISREG(now.st_mode):
            raise DataError(f"{printable(path)}: is a folder or a device, not a file")
        yield now.st_size, now.st_mtime_ns


def _places(
    paths: Sequence[Path | str], purpose: str, origin: Sequence[Path | str]
) -> list[tuple[Path, bytes]]:
    """Where the sidecar may be, best first, each with the identity it must state.

    In the folder that is the origin, or that its files share, it is known by the paths within that, so that
    it moves with them.
    """
    import platformdirs

    whole = [Path(os.path.abspath(path)) for path in origin]  # noqa: PTH100 - resolve() would follow links
    base = os.path.commonpath([path if path.is_dir() else path.parent for path in whole])
    named, listed = hashlib.sha256(purpose.encode()), hashlib.sha256(purpose.encode())
    for each in whole:
        named.update(b"\0" + bytes(each.relative_to(base)))
    inside = os.path.join(base, "")  # noqa: PTH118
    for path in paths:  # one at a time: there may be a million
        listed.update(b"\0" + os.fsencode(os.path.abspath(path).removeprefix(inside)))  # noqa: PTH100
    kind = "".join(filter(str.isalnum, purpose.split(" ", 1)[0]))[:32]
    places = []
    for folder, known_by in (
        (Path(base), b""),
        (platformdirs.user_cache_path("foveal") / "indexes", b"\0" + os.fsencode(base)),
    ):
        named.update(known_by)
        listed.update(known_by)
        places.append((folder / f".foveal-{kind}-{named.hexdigest()[:16]}.index", listed.digest()))
    return places


def _load(place: Path, identity: bytes, expected: NDArray[np.int64]) -> dict[str, NDArray[np.generic]] | None:
    """The arrays of a sidecar; None where it is missing, damaged, or of files in another state."""
    try:
        with place.open("rb") as file, zipfile.ZipFile(file) as archive:
            limit = os.fstat(file.fileno()).st_size
            arrays = {
                member.filename.removesuffix(".npy"): _array(archive, member, limit)
                for member in archive.infolist()
            }
        if arrays.pop(_SEAL).tobytes() != _seal(identity, arrays):
            return None
        if not np.array_equal(arrays.pop(_STATES), expected):
            return None
    except Exception:  # noqa: BLE001 - whatever is wrong with it: it is only a cache
        return None
    return arrays


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo, limit: int) -> NDArray[np.generic]:
    """A member as an array over its own bytes."""
    if member.compress_type != zipfile.ZIP_STORED or member.file_size > limit:
        raise ValueError("not stored")
    content = archive.read(member)
    header = io.BytesIO(content)
    if np.lib.format.read_magic(header) != (1, 0):
        raise ValueError("not of version 1.0")
    shape, by_columns, dtype = np.lib.format.read_array_header_1_0(header)
    array = np.frombuffer(content, dtype, offset=header.tell())
    if min(shape, default=0) < 0:  # NumPy would find out what was meant
        raise ValueError("not a shape")
    return array.reshape(shape, order="F" if by_columns else "C")


def _seal(identity: bytes, names: Iterable[str]) -> bytes:
    """What tells that a sidecar is the one wanted and has all its members: their names have no CRC."""
    return hashlib.sha256("\0".join([identity.hex(), *names]).encode()).digest()


def _store(places: list[tuple[Path, bytes]], arrays: Arrays, found: NDArray[np.int64]) -> Path | None:
    """Write the sidecar to the first place that can be written to, and return that, if there is one."""
    for place, identity in places:
        content = io.BytesIO()
        members = {**arrays, _STATES: found}
        members[_SEAL] = np.frombuffer(_seal(identity, members), np.uint8)
        with zipfile.ZipFile(content, "w") as archive:
            for name, array in members.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.asanyarray(array), (1, 0), allow_pickle=False)
        try:
            write_atomically(place, content.getvalue())
        except OSError:
            continue
        return place
    return None
