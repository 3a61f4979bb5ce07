"""IDX, the format of MNIST's files: a magic number, the sizes, then the values.

Specification: the "File formats" section of Yann LeCun's MNIST page. Two zero bytes, a type code (0x08 is
unsigned byte), the number of dimensions, each dimension as a big-endian uint32, the values in C order.
"""

from __future__ import annotations

import gzip
import math
import zlib
from typing import TYPE_CHECKING

import numpy as np

from foveal.data.source import ArraySource
from foveal.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

_LIMIT = 4 << 30  # bytes an IDX file may unpack to


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
    content = _read(path)
    if len(content) < 4:
        raise DataError(f"{path}: {len(content)} bytes are too few for an IDX file")
    if content[:4] != bytes([0, 0, 8, dimensions]):
        wanted = f"000008{dimensions:02x}"
        raise DataError(
            f"{path}: the magic number is {content[:4].hex()}, not {wanted} "
            f"(IDX, unsigned bytes, {dimensions} dimensions)"
        )
    header = 4 + 4 * dimensions
    if len(content) < header:
        raise DataError(f"{path}: cut off inside the header, after {len(content)} of {header} bytes")
    shape = tuple(int(size) for size in np.frombuffer(content, ">u4", dimensions, 4))
    expected = header + math.prod(shape)
    if len(content) != expected:
        raise DataError(
            f"{path}: {len(content)} bytes, but its header of {' x '.join(map(str, shape))} values "
            f"asks for {expected}: it is cut off or damaged"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def read_idx_pair(images_path: Path, labels_path: Path, classes: tuple[str, ...]) -> ArraySource:
    """Images and their labels as a source.

    Raises:
        DataError: either file is malformed, their counts differ, or a label is out of range.
    """
    images, labels = read_idx(images_path, 3), read_idx(labels_path, 1)
    if labels.size and labels.max() >= len(classes):
        record = int(np.argmax(labels >= len(classes)))
        raise DataError(
            f"{labels_path} record {record}: label {labels[record]} is out of range: "
            f"there are {len(classes)} classes, 0 to {len(classes) - 1}"
        )
    return ArraySource(images[..., None], labels.astype(np.int64), classes, str(images_path))


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            if file.read(2) != b"\x1f\x8b":
                file.seek(0)
                return file.read(_LIMIT)
        with gzip.open(path) as file:
            content = file.read(_LIMIT + 1)
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file: give another folder with --data") from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
    if len(content) > _LIMIT:
        raise DataError(f"{path}: unpacks to more than {_LIMIT >> 30} GiB")
    return content
