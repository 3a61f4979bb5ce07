"""Which format the data at a path have: by the first bytes of files, their names, and their folders."""

from __future__ import annotations

import glob
import os
import stat
import zlib
from collections import deque
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from foveal.data.formats.cifar import find_cifar
from foveal.data.formats.index import printable
from foveal.data.formats.parts import WORDS
from foveal.errors import DataError
from foveal.tensorflow.records import masked_crc

if TYPE_CHECKING:
    from collections.abc import Iterator

_ENTRIES = 10_000  # of a folder that are looked at
_PEEKS = 100  # files that are opened, because their names do not tell
_DEPTH = 3  # of folders that are gone into: a part, a class, and one in it
_SUFFIXES = {
    ".csv": "csv",
    ".tsv": "csv",
    ".tfrecord": "tfrecord",
    ".tfrecords": "tfrecord",
    ".tfrec": "tfrecord",
    ".parquet": "parquet",
    ".arrow": "parquet",
    ".npz": "arrays",
    ".npy": "arrays",
    **dict.fromkeys((".bin", ".dat", ".data", ".raw"), "fixed_length"),
    **dict.fromkeys((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"), "image"),
}
_STARTS = {
    b"PAR1": "parquet",
    b"\x93NUMPY": "arrays",
    b"\0\0\x08\x03": "idx",
    b"\xff\xd8\xff": "image",
    b"\x89PNG": "image",
    b"GIF8": "image",
}
_ACCEPTED = (
    "a folder with a subfolder of images for each class, or files: CSV, TFRecord, Parquet, NumPy's .npz, IDX "
    "(MNIST), or the binary version of CIFAR-10 or CIFAR-100"
)


def recognise(path: Path) -> str:
    """The format of a file, a folder, or the files of a pattern.

    Returns:
        ``"folder"`` (images in a subfolder for each class), ``"csv"``, ``"tfrecord"``, ``"parquet"``,
        ``"idx"``, ``"arrays"``, ``"cifar10"`` or ``"cifar100"``.

    Raises:
        DataError: there is nothing, nothing of a known format, or several formats beside each other.
    """
    shown = printable(path)
    try:
        found = _in_folder(path) if path.is_dir() else _in_files(path)
    except OSError as error:
        raise DataError(f"{shown}: cannot be read: {error.strerror}") from None
    formats = sorted(found - {"image", "fixed_length"})
    if len(formats) == 1:
        return formats[0]
    if formats:
        raise DataError(f"{shown}: holds several formats, {' and '.join(formats)}: name one with data.name")
    if "fixed_length" in found:
        raise DataError(
            f"{shown}: if these are fixed-length records, nothing in them says their layout: "
            "data.name = 'fixed_length' with the options image_shape and classes"
        )
    if "image" in found:
        raise DataError(f"{shown}: images without classes: each class needs a subfolder, named after it")
    raise DataError(f"{shown}: holds nothing that is known: give {_ACCEPTED}")


def _in_files(path: Path) -> set[str]:
    pattern = str(path)
    files = [path] if path.exists() else [Path(each) for each in sorted(glob.glob(pattern, recursive=True))]  # noqa: PTH207 - it may be absolute
    if not files:
        raise DataError(f"{printable(path)}: there is no such file or folder")
    found: set[str] = set()
    for file in files[:_PEEKS]:
        found.update(find_cifar(file) or filter(None, [_by_content(file) or _by_name(file)]))
    return found


def _in_folder(path: Path) -> set[str]:
    """What a folder holds: formats, and "image" for images that are in no class's folder."""
    found, classes, peeks = set(find_cifar(path)), set(), 0
    for file, above in _walk(path):
        form = _by_name(file)
        if form in {None, "fixed_length"} and len(above) < 2 and peeks < _PEEKS:
            peeks += 1
            form = _by_content(file) or form
        folders = above[1:] if above and above[0].lower() in WORDS else above
        if form == "image" and folders:
            classes.add(folders[0])
        elif form == "image" or (form and len(above) < 2):
            found.add(form)
        if len(classes) > 1 and above:  # enough, and there may be a million images
            break
    if found & {"cifar10", "cifar100"}:
        found.discard("fixed_length")
    if len(classes) > 1 or (classes and "csv" not in found):  # a table beside one folder: that of its images
        found.add("folder")
    return found


def _walk(path: Path) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """The visible files in a folder, then those in folders below it, each with the folders it is in."""
    waiting: deque[tuple[Path, tuple[str, ...]]] = deque([(path, ())])
    while waiting:
        folder, above = waiting.popleft()
        try:
            with os.scandir(folder) as entries:
                some = sorted((entry.name, _is_folder(entry)) for entry in islice(entries, _ENTRIES))
        except OSError:
            if above:  # the format's reader will say so, if it matters
                continue
            raise
        for name, is_folder in some:
            if not is_folder and not name.startswith("."):
                yield folder / name, above
            elif not name.startswith(".") and len(above) < _DEPTH:
                waiting.append((folder / name, (*above, name)))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _by_name(path: Path) -> str | None:
    name = path.name.lower().removesuffix(".gz")
    if name.endswith(("-images-idx3-ubyte", "-images.idx3-ubyte")):
        return "idx"
    ends = [end.split("-")[0] for end in Path(name).suffixes]  # a shard's is .tfrecord-00000-of-00010
    return next((_SUFFIXES[end] for end in ends if end in _SUFFIXES), None)


def _by_content(path: Path) -> str | None:
    start = _start(path)
    if len(start) >= 12 and masked_crc(start[:8]) == int.from_bytes(start[8:12], "little"):
        return "tfrecord"
    if start.startswith(b"PK\x03\x04"):  # a ZIP archive: the name of its first member
        return "arrays" if start[30 : 30 + int.from_bytes(start[26:28], "little")].endswith(b".npy") else None
    return next((form for magic, form in _STARTS.items() if start.startswith(magic)), None)


def _start(path: Path) -> bytes:
    """The first bytes of a file, unpacked if it is packed; none of one that cannot be read."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a named pipe would wait for its writer
            return b""
        with path.open("rb") as file:
            start = file.read(4096)
    except OSError:
        return b""
    if start.startswith((b"\x1f\x8b", b"\x78")):
        try:
            return zlib.decompressobj(wbits=47).decompress(start, 64)  # 47: gzip or zlib
        except zlib.error:
            return start
    return start
