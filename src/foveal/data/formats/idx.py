"""IDX, the format of MNIST's files: a magic number, the sizes, then the values.

Specification: the "File formats" section of Yann LeCun's MNIST page. Two zero bytes, a type code (0x08 is
unsigned byte), the number of dimensions, each dimension as a big-endian uint32, the values in C order.
"""

from __future__ import annotations

import gzip
import math
import os
import re
import stat
import zlib
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from foveal.data.formats.index import printable
from foveal.data.source import ArraySource, DataSet, check_labels, class_names
from foveal.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from io import BufferedIOBase
    from pathlib import Path

    from numpy.typing import NDArray

    from foveal.data.download import ProgressReporter

_LIMIT = 4 << 30  # bytes an IDX file may unpack to
_DEFLATE = 1032  # times the bytes of a gzip file are the most that it can unpack to

# Of MNIST, Fashion-MNIST, KMNIST and EMNIST: the data set, if it is named; the part.
_IMAGES = re.compile(r"(?:(.+)-)?(train|t10k|test|val|valid|validation)-images[-.]idx3-ubyte(\.gz)?")
_PARTS = {"train": "train", "t10k": "test", "test": "test"}  # all others: validation


def open_idx(
    path: Path,
    progress: ProgressReporter | None = None,  # noqa: ARG001 - all formats are called alike
    *,
    classes: Sequence[str] | int | None = None,
    train: str | None = None,
    validation: str | None = None,
    test: str | None = None,
) -> DataSet:
    """Images and labels in files named as those of MNIST, Fashion-MNIST, KMNIST or EMNIST, packed or not.

    Args:
        path: their folder; or one file of images, which are then trained on.
        progress: told of nothing: it is quick.
        classes: the class names, or how many there are; by default as many as the largest label asks for.
        train: the file of images to train on, where names do not tell. Its labels are in the file whose name
            has ``labels`` and ``idx1`` instead of ``images`` and ``idx3``.
        validation: as ``train``.
        test: as ``train``.

    Raises:
        DataError: there are no such files, or several for one part; one is malformed, or they do not fit.
        RecipeError: the classes cannot be.
    """
    given = {
        part: name for part, name in (("train", train), ("validation", validation), ("test", test)) if name
    }
    try:
        is_folder = path.is_dir()
    except OSError as error:
        raise DataError(f"{printable(path)}: cannot be read: {error.strerror}") from None
    if given:
        files = {part: (path if is_folder else path.parent) / name for part, name in given.items()}
    else:
        files = find_idx(path) if is_folder else {"train": path}
    if "train" not in files:
        raise DataError(f"{printable(path)}: has no images to train on, only {' and '.join(files)} images")
    pairs = {part: (images, _labels_path(images)) for part, images in files.items()}
    if classes is None:
        largest = max(int(read_idx(labels, 1).max(initial=0)) for _, labels in pairs.values())
        classes = largest + 1
    names = class_names(classes)
    return DataSet(**{part: read_idx_pair(*paths, names) for part, paths in pairs.items()})


def find_idx(folder: Path) -> dict[str, Path]:
    """The files of images in a folder, by part; of one that is there packed and unpacked, the latter.

    Raises:
        DataError: the folder cannot be read, or holds no such file, or several for one part.
    """
    try:
        names = sorted(os.listdir(folder))  # noqa: PTH208 - names are wanted
    except OSError as error:
        raise DataError(f"{printable(folder)}: cannot be read: {error.strerror}") from None
    found: dict[str, dict[str, Path]] = {}
    for name in names:
        if match := _IMAGES.fullmatch(name):
            part = _PARTS.get(match[2], "validation")
            found.setdefault(part, {}).setdefault(name.removesuffix(".gz"), folder / name)
    if not found:
        raise DataError(
            f"{printable(folder)}: holds no images in IDX: they are named like train-images-idx3-ubyte.gz"
        )
    for part, files in found.items():
        if len(files) > 1:
            several = ", ".join(map(printable, files))
            raise DataError(
                f"{printable(folder)}: holds several files of {part} images: {several}: name one of them"
            )
    return {part: next(iter(files.values())) for part, files in found.items()}


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """Read an IDX file of unsigned bytes, plain or gzip-compressed (recognised by content, not by name).

    Args:
        path: the file.
        dimensions: how many it must have: 3 for images, 1 for labels.

    Returns:
        uint8 array of the shape the file declares.

    Raises:
        DataError: the file is missing, is not IDX, or is not as long as it declares.
    """
    header = 4 + 4 * dimensions
    with _opened(path) as (file, most):
        start = file.read(header)
        if len(start) < 4:
            raise DataError(f"{path}: {len(start)} bytes are too few for an IDX file")
        if start[:4] != bytes([0, 0, 8, dimensions]):
            wanted = f"000008{dimensions:02x}"
            raise DataError(
                f"{path}: the magic number is {start[:4].hex()}, not {wanted} "
                f"(IDX, unsigned bytes, {dimensions} dimensions)"
            )
        if len(start) < header:
            raise DataError(f"{path}: cut off inside the header, after {len(start)} of {header} bytes")
        shape = tuple(int(size) for size in np.frombuffer(start, ">u4", dimensions, 4))
        expected = math.prod(shape)
        content = file.read(min(expected, most) + 1)  # and a byte more, to see whether it ends there
    if len(content) != expected:
        has = f"more than {header + expected}" if len(content) > expected else str(header + len(content))
        raise DataError(
            f"{path}: {has} bytes, but its header of {' x '.join(map(str, shape))} values "
            f"asks for {header + expected}: it is cut off or damaged"
        )
    return np.frombuffer(content, np.uint8).reshape(shape)


def read_idx_pair(images_path: Path, labels_path: Path, classes: tuple[str, ...]) -> ArraySource:
    """Images and their labels as a source.

    Raises:
        DataError: either file is malformed, their counts differ, or a label is out of range.
    """
    images, labels = read_idx(images_path, 3), read_idx(labels_path, 1)
    check_labels(labels, classes, lambda record: f"{labels_path} record {record}")
    return ArraySource(images[..., None], labels.astype(np.int64), classes, str(images_path))


def _labels_path(images: Path) -> Path:
    """Where the labels of a file of images are; packed or not, whichever is there."""
    name = images.name.replace("images", "labels").replace("idx3", "idx1")
    if name == images.name:
        raise DataError(
            f"{printable(images)}: no name of a file of images, like train-images-idx3-ubyte: "
            "its labels cannot be found"
        )
    plain = images.with_name(name.removesuffix(".gz"))
    packed = images.with_name(f"{plain.name}.gz")
    if not plain.exists() and not packed.exists():
        raise DataError(f"{printable(images)}: its labels are missing: there is no {printable(plain.name)}")
    return plain if plain.exists() else packed


@contextmanager
def _opened(path: Path) -> Iterator[tuple[BufferedIOBase, int]]:
    """A file, unpacked if it is packed, and the most bytes that it can hold."""
    try:
        state = path.stat()
        if not stat.S_ISREG(state.st_mode):  # before opening: a named pipe would wait for its writer
            raise DataError(f"{path}: cannot be read: it is a folder or a device")
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            if packed:
                with gzip.open(file) as unpacked:
                    yield unpacked, min(state.st_size * _DEFLATE, _LIMIT)
            else:
                yield file, state.st_size
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file: give another folder with --data") from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
