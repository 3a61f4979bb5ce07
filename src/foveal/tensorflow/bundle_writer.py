"""Writing V2 checkpoints, as TensorFlow's ``BundleWriter`` does: the same tensors give the same bytes.

Specification: TensorFlow's ``core/util/tensor_bundle/tensor_bundle.cc``; reading is in ``bundle.py``.
"""

from __future__ import annotations

import os
import secrets
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from foveal.checkpoints.checksum import crc32c
from foveal.errors import CheckpointError
from foveal.files import OutputFile, sync_folder
from foveal.tensorflow.bundle import BYTE_ORDERS, VERSION, string_lengths
from foveal.tensorflow.checkpoint_messages import (
    DTYPES,
    STRING,
    BundleEntryProto,
    BundleHeaderProto,
    Dim,
    TensorShapeProto,
)
from foveal.tensorflow.record_framing import masked
from foveal.tensorflow.table_writer import encode_varint, write_table

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from io import FileIO

    from numpy.typing import ArrayLike, NDArray

__all__ = ["write_bundle"]

_CHUNK = 1 << 19  # bytes: what is checksummed is still in the processor's cache when it is written
_NUMBERS: Final = {dtype: number for number, dtype in DTYPES.items()}


def write_bundle(prefix: Path | str, tensors: Mapping[str, ArrayLike]) -> None:
    """Write ``PREFIX.index`` and ``PREFIX.data-00000-of-00001`` and force them to the disk.

    The index of an older checkpoint of that prefix is deleted first and the new one comes last: a crash
    leaves the old checkpoint, the new one, or none, and never one that reads and is neither.

    Args:
        prefix: what the names of the files begin with; folders that do not exist are made.
        tensors: by name, of any dtype in ``DTYPES``; strings are arrays of objects, which are bytes. None may
            change meanwhile.

    Raises:
        CheckpointError: a tensor or its name cannot be stored; nothing was changed.
        OSError: the disk is full, for example.
    """
    index = Path(f"{os.fspath(prefix)}.index")
    keys = {_key(name): name for name in tensors}
    arrays = {key: _array(keys[key], tensors[keys[key]]) for key in sorted(keys)}
    header = BundleHeaderProto(num_shards=1, endianness=BYTE_ORDERS.index(sys.byteorder))
    header.version.producer = VERSION
    items = [(b"", header.SerializeToString())]
    index.parent.mkdir(parents=True, exist_ok=True)
    with _new_file(Path(f"{os.fspath(prefix)}.data-00000-of-00001"), index) as file:
        output = OutputFile(file)
        for key, array in arrays.items():
            items.append((key, _write(output, array).SerializeToString()))
    write_table(index, items)


def _key(name: str) -> bytes:
    try:
        key = name.encode()
    except UnicodeEncodeError:
        key = b""
    if not key or not key[0]:
        raise CheckpointError(
            f"a tensor cannot be named {name!r}: names are UTF-8, not empty, and begin with no zero"
        )
    return key


def _array(name: str, value: ArrayLike) -> NDArray[Any]:
    """A tensor that is known to have a dtype of TensorFlow's."""
    array = np.asarray(value)
    native = array.dtype.newbyteorder("=")
    if native not in _NUMBERS:
        hint = ": give strings as an array of objects, which are bytes" if native.kind in "SU" else ""
        raise CheckpointError(f"tensor {name!r} cannot be stored: TensorFlow has no dtype {native}{hint}")
    if native == np.object_ and not all(isinstance(each, bytes) for each in array.flat):
        raise CheckpointError(f"tensor {name!r} cannot be stored: its objects are not all bytes")
    return array


@contextmanager
def _new_file(path: Path, index: Path) -> Iterator[FileIO]:
    """A file that takes its name when it is complete; the index of what stood there is deleted first."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb", buffering=0) as file:
            yield file
            os.fsync(file.fileno())
        index.unlink(missing_ok=True)
        sync_folder(path.parent)  # else a power cut could bring the old index back beside the new data
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def _append(output: OutputFile, content: NDArray[np.uint8], crc: int = 0) -> int:
    """Write bytes after the others; returns ``crc`` extended by them."""
    for start in range(0, len(content), _CHUNK):
        chunk = content[start : start + _CHUNK]
        crc = crc32c(chunk, crc)
        output.write(chunk.data)
    return crc


def _write(output: OutputFile, array: NDArray[Any]) -> Any:
    """Append a tensor; returns its entry of the index."""
    shape = TensorShapeProto(dim=[Dim(size=size) for size in array.shape])
    array = np.asarray(array, array.dtype.newbyteorder("="), order="C")
    entry = BundleEntryProto(dtype=_NUMBERS[array.dtype], shape=shape.SerializeToString(), offset=output.size)
    if entry.dtype == STRING:
        crc = _write_strings(output, array)
    else:
        crc = _append(output, array.reshape(-1).view(np.uint8))
    entry.size, entry.crc32c = output.size - entry.offset, masked(crc)
    return entry


def _write_strings(output: OutputFile, array: NDArray[np.object_]) -> int:
    """Append strings; returns their CRC-32C as bundles have it."""
    strings = array.ravel().tolist()
    lengths = [len(each) for each in strings]
    crc = crc32c(string_lengths(lengths, sys.byteorder))
    rest = b"".join([masked(crc).to_bytes(4, sys.byteorder), *strings])
    front = b"".join(map(encode_varint, lengths))
    _append(output, np.frombuffer(front, np.uint8))
    return _append(output, np.frombuffer(rest, np.uint8), crc)
