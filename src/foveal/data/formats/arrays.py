"""NumPy's files: an archive ``.npz``, or a folder of ``.npy``, with arrays of images and of their labels.

Specification: ``numpy.lib.format`` (a header in Python's syntax, then the values), in a ZIP archive. The
names of the arrays are those of Keras' ``mnist.npz`` (``x_train``), of MedMNIST (``train_images``), or
``images``. Pickled objects are refused. Claimed sizes are compared with what the file can hold before memory
is taken.
"""

from __future__ import annotations

import math
import os
import stat
import struct
import zipfile
import zlib
from contextlib import contextmanager
from functools import partial
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np

from foveal.data.formats.index import printable
from foveal.data.source import CLASS_LIMIT, ArraySource, DataSet, class_names
from foveal.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from foveal.data.download import ProgressReporter

_DEFLATE = 1032  # times its packed bytes are the most that a member can unpack to
_PIECE = 1 << 20  # bytes read at once
_NAMES = (  # of images and their labels, in the order in which they are looked for
    ("x_{part}", "y_{part}"),
    ("{part}_images", "{part}_labels"),
    ("images", "labels"),
)
_WORDS = {"train": ("train",), "validation": ("validation", "valid", "val"), "test": ("test",)}
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}

# What the readers raise at damaged files; RuntimeError also at encrypted ones.
_DAMAGED = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, ValueError, RuntimeError)


class _Stored(NamedTuple):
    """An array that has not been read: its name for messages, the most bytes it can have, how to open it."""

    key: str
    most: int
    open: Callable[[], IO[bytes]]


def open_arrays(
    path: Path,
    progress: ProgressReporter | None = None,  # noqa: ARG001 - all formats are called alike
    *,
    images: str | None = None,
    labels: str | None = None,
    classes: Sequence[str] | int | None = None,
    channels_first: bool = False,
) -> DataSet:
    """Arrays of images and labels, read into memory.

    Images are uint8 or float32 ``[N, height, width]`` or ``[N, height, width, channels]``; or float32
    ``[N, columns]``, rows of plain numbers. Labels are integers ``[N]`` or ``[N, 1]``.

    Args:
        path: a file ``.npz``, or a folder with files ``.npy``.
        progress: told of nothing: it is quick.
        images: the name of the arrays of images; ``{part}`` in it stands for train, val, valid, validation or
            test. Without it there is a train part only. By default the customary names are looked for.
        labels: as ``images``.
        classes: the class names, or how many there are; by default those in an array ``classes`` of text,
            else as many as the largest label asks for.
        channels_first: images are ``[N, channels, height, width]``.

    Raises:
        DataError: there is no such file or array, or it is damaged, or of another kind or shape.
        RecipeError: the classes cannot be.
    """
    names = ((images or "images", labels or "labels"),) if images or labels else _NAMES
    with _opened(path) as stored:
        pairs = _pairs(path, stored, names)
        read = {part: (_images(x, channels_first), _labels(y)) for part, (x, y) in pairs.items()}
        if classes is None and "classes" in stored:
            classes = _texts(stored["classes"])
    if classes is None:
        largest = max(int(targets.max(initial=0)) for _, targets in read.values())
        if largest >= CLASS_LIMIT:
            raise DataError(f"{printable(path)}: label {largest} is no class index")
        classes = largest + 1
    known = class_names(classes)
    return DataSet(**{part: ArraySource(*read[part], known, pairs[part][0].key) for part in pairs})


@contextmanager
def _opened(path: Path) -> Iterator[dict[str, _Stored]]:
    """The arrays in an archive or a folder, by name."""
    shown = printable(path)
    try:
        if path.is_dir():
            files = [each for each in sorted(path.glob("*.npy")) if each.is_file()]
            yield {
                each.stem: _Stored(printable(each), each.stat().st_size, partial(_binary, each))
                for each in files
            }
            return
        state = path.stat()
        if not stat.S_ISREG(state.st_mode):  # before opening: a named pipe would wait for its writer
            raise DataError(f"{shown}: is a device, not an archive of arrays")
        with zipfile.ZipFile(path) as archive:
            stored = {}
            for member in archive.infolist():
                name = member.filename.removesuffix(".npy")
                most = min(member.file_size, _DEFLATE * min(member.compress_size, state.st_size))
                stored[name] = _Stored(f"{shown} {name}", most, partial(archive.open, member))
            yield stored
    except FileNotFoundError:
        raise DataError(f"{shown}: there is no such file") from None
    except OSError as error:
        raise DataError(f"{shown}: cannot be read: {error.strerror or error}") from None
    except _DAMAGED as error:
        raise DataError(f"{shown}: damaged, cut off, or no archive of arrays: {_reason(error)}") from None


def _binary(path: Path) -> IO[bytes]:
    return path.open("rb")


def _pairs(
    path: Path, stored: Mapping[str, _Stored], names: Sequence[tuple[str, str]]
) -> dict[str, tuple[_Stored, _Stored]]:
    """The arrays of images and of labels of each part."""
    for images, labels in names:
        found = {}
        for part, words in _WORDS.items() if "{part}" in images else [("train", ("train",))]:
            for word in words:
                image_name, label_name = (name.replace("{part}", word) for name in (images, labels))
                if image_name in stored:
                    if label_name not in stored:
                        raise DataError(f"{printable(path)}: has {image_name!r}, but not {label_name!r}")
                    found[part] = stored[image_name], stored[label_name]
        if "train" in found:
            return found
    wanted = ", ".join(repr(images.replace("{part}", "train")) for images, _ in names)
    there = ", ".join(map(repr, [*stored][:12])) or "no arrays"
    raise DataError(
        f"{printable(path)}: has no images to train on, in an array {wanted}; it has {there}: "
        "name them with the options images and labels"
    )


def _images(stored: _Stored, channels_first: bool) -> NDArray[Any]:
    """Uint8 or float32 ``[N, H, W, C]``."""
    array = _read(stored)
    shape = list(array.shape)
    if array.dtype not in (np.uint8, np.float32):
        raise DataError(f"{stored.key}: images are uint8 or float32, not {array.dtype}")
    if array.ndim not in {2 if array.dtype == np.float32 else 3, 3, 4} or 0 in shape[1:]:
        raise DataError(
            f"{stored.key}: images are [N, height, width], [N, height, width, channels] or, "
            f"as float32, [N, columns], not {array.dtype} {shape}"
        )
    if array.ndim < 4:
        return array[:, None, None, :] if array.ndim == 2 else array[..., None]
    if channels_first:
        return np.ascontiguousarray(array.transpose(0, 2, 3, 1))
    if shape[1] in {1, 3} and shape[3] > 4:
        raise DataError(
            f"{stored.key}: images of {shape[3]} channels, {shape[1]} pixels high: "
            "if they are [N, channels, height, width], say channels_first = true"
        )
    return array


def _labels(stored: _Stored) -> NDArray[np.int64]:
    """Int64 ``[N]``."""
    array = _read(stored)
    if array.dtype.kind not in "iu" or array.ndim not in {1, 2} or array.shape[1:] not in {(), (1,)}:
        raise DataError(
            f"{stored.key}: labels are integers [N] or [N, 1], not {array.dtype} {list(array.shape)}"
        )
    return array.reshape(-1).astype(np.int64)


def _texts(stored: _Stored) -> list[str]:
    array = _read(stored)
    if array.dtype.kind != "U" or array.ndim != 1:
        raise DataError(f"{stored.key}: class names are text [N], not {array.dtype} {list(array.shape)}")
    names: list[str] = array.tolist()
    return names


def _read(stored: _Stored) -> NDArray[Any]:
    """An array, in C order and the processor's byte order."""
    try:
        with stored.open() as file:
            shape, by_columns, dtype = _header(file, stored)
            array = np.empty(math.prod(shape), dtype)
            target, done = array.view(np.uint8).data, 0
            while piece := file.read(_PIECE):
                if len(piece) > len(target) - done:
                    raise DataError(f"{stored.key}: goes on after its {len(target)} bytes of values")
                target[done : done + len(piece)] = piece
                done += len(piece)
    except OSError as error:
        raise DataError(f"{stored.key}: cannot be read: {error.strerror or error}") from None
    except _DAMAGED as error:
        raise DataError(f"{stored.key}: damaged or cut off: {_reason(error)}") from None
    if done < len(target):
        raise DataError(f"{stored.key}: cut off after {done} of its {len(target)} bytes of values")
    array = array.astype(dtype.newbyteorder("="), copy=False)
    return np.asarray(array.reshape(shape, order="F" if by_columns else "C"), order="C")


def _header(file: IO[bytes], stored: _Stored) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether the values stand by columns, and type; all of it possible."""
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
        raise DataError(
            f"{stored.key}: version {version[0]}.{version[1]} of the format, for which there is no use"
        )
    try:
        shape, by_columns, dtype = _HEADERS[version](file)
    except OSError:
        raise
    except Exception as error:  # noqa: BLE001 - of Python's parser: more kinds than are documented
        raise ValueError(f"its header says nothing: {error}") from None
    if dtype.hasobject or dtype.kind not in "biufcSU":
        raise DataError(f"{stored.key}: holds {dtype}, not numbers or text")
    size = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or size > stored.most:
        raise DataError(
            f"{stored.key}: {dtype} {list(shape)} are {size} bytes, more than there can be: it is damaged"
        )
    if size > (there := _memory()):
        raise DataError(f"{stored.key}: {size} bytes, and this machine has a memory of {there}")
    return shape, by_columns, dtype


def _memory() -> int:
    """Bytes of this machine's memory; without end where the system does not say."""
    if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", ()):
        return 1 << 62
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
