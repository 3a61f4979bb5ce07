"""Reading V2 checkpoints, which TensorFlow calls tensor bundles: an index, and files with the tensors' bytes.

Specification: TensorFlow's ``core/util/tensor_bundle/tensor_bundle.cc`` and ``naming.cc``; the keys of
slices are from ``core/util/saved_tensor_slice_util.cc`` and ``core/lib/strings/ordered_code.cc``.
``PREFIX.index`` is a table (``table.py``), the bytes are in ``PREFIX.data-00000-of-00001`` and so on. Writing
is in ``bundle_writer.py``; ``docs/formats.md`` has the bytes.
"""

from __future__ import annotations

import difflib
import itertools
import math
import os
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # its wheels have no stubs

from foveal.checkpoints.checksum import crc32c
from foveal.checkpoints.untrusted import open_for_reading
from foveal.errors import CheckpointError
from foveal.tensorflow.checkpoint_messages import (
    DTYPES,
    STRING,
    BundleEntryProto,
    BundleHeaderProto,
    TensorShapeProto,
)
from foveal.tensorflow.record_framing import masked
from foveal.tensorflow.table import Table, TableEntry, damaged, varint

if TYPE_CHECKING:
    from collections.abc import Iterator
    from io import FileIO

    from numpy.typing import NDArray

__all__ = ["Bundle"]

ByteOrder = Literal["little", "big"]
VERSION: Final = 1  # of the format; what a file may demand of its reader
_DIMENSIONS = 64  # NumPy has no more
_TOO_LARGE = 1 << 58  # elements: no element has more than 16 bytes, and NumPy's sizes are below 2^63
_ALL = -1  # the length of a slice that is all of a dimension
_CHUNK = 1 << 19  # bytes: what was read is still in the processor's cache when it is checksummed
BYTE_ORDERS: Final[tuple[ByteOrder, ...]] = ("little", "big")  # by the number that the header has for them

Extents = tuple[tuple[int, int], ...]  # of a slice, by dimension: its start, and its length or -1 for all


class _Entry(NamedTuple):
    """What the index says of a tensor, or of one slice of it.

    Attributes:
        name: for messages.
        kind: the number of its dtype.
        shape: of the whole.
        shard, offset, size: where its bytes are.
        crc: their CRC-32C, masked.
        slices: those that it is stored in, if it is.
        place: the byte of the index at which the entry stands.
    """

    name: str
    kind: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    crc: int
    slices: tuple[Extents, ...]
    place: int


class Bundle:
    """A V2 checkpoint. Threads may share one: it holds no open file between calls.

    Attributes:
        prefix: what the names of its files begin with.
        path: the index.
    """

    def __init__(self, prefix: Path | str) -> None:
        """Read the index; the files with the bytes are looked at when a tensor is asked for.

        Raises:
            DamagedCheckpointError: the index is damaged or contradicts itself; says where.
            CheckpointError: it cannot be opened, or needs a newer reader.
        """
        self.prefix = os.fspath(prefix)
        self.path = Path(f"{self.prefix}.index")
        self._tensors: dict[str, _Entry] = {}
        self._slices: dict[bytes, _Entry] = {}
        self._shards, self._byte_order = 0, BYTE_ORDERS[0]
        shapes: dict[bytes, tuple[int, ...]] = {}
        for each in Table(self.path).entries():
            if not each.key:
                self._shards, self._byte_order = _header(self.path, each)
            elif not self._shards:
                damaged(self.path, each.offset, "the header of the bundle is missing")
            elif each.key[0]:
                entry = _entry(self.path, each, self._shards, shapes)
                self._tensors[entry.name] = entry
            else:
                self._slices[each.key] = _entry(self.path, each, self._shards, shapes)
        if not self._shards:
            damaged(self.path, 0, "the header of the bundle is missing")
        self._require_apart()

    def names(self) -> list[str]:
        """The names of all tensors, in the order of their UTF-8."""
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor.

        Raises:
            CheckpointError: there is no such tensor.
        """
        return self._named(name).shape

    def dtype(self, name: str) -> np.dtype[Any]:
        """The dtype of a tensor; that of strings is object.

        Raises:
            CheckpointError: there is no such tensor, or it has a dtype that is not supported.
        """
        return self._dtype(self._named(name))

    def get(self, name: str) -> NDArray[Any]:
        """Read a tensor and verify its checksum; one that was stored in slices is joined.

        Returns:
            An array with memory of its own, in the machine's byte order. Strings are objects: bytes.

        Raises:
            DamagedCheckpointError: its bytes are not those that were written, or are not all there.
            CheckpointError: there is no such tensor, it has a dtype that is not supported, its file cannot be
                opened, or it does not fit in memory.
        """
        entry = self._named(name)
        try:
            return self._join(entry) if entry.slices else self._read(entry)
        except MemoryError:
            raise CheckpointError(f"{self.path}: tensor {name!r} does not fit in memory: free some") from None

    def _named(self, name: str) -> _Entry:
        if (entry := self._tensors.get(name)) is not None:
            return entry
        near = difflib.get_close_matches(name, self._tensors, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "name one of those it has"
        raise CheckpointError(f"{self.path}: no tensor is named {name!r}: {hint}")

    def _dtype(self, entry: _Entry) -> np.dtype[Any]:
        if entry.kind not in DTYPES:
            raise CheckpointError(
                f"{self.path}: byte {entry.place}: tensor {entry.name!r} has TensorFlow's dtype number "
                f"{entry.kind}, which is not supported"
            )
        return DTYPES[entry.kind]

    def _require_apart(self) -> None:
        """Refuse tensors that share bytes: a small file would fill a large memory."""
        everything = itertools.chain(self._tensors.values(), self._slices.values())
        places = sorted((each.shard, each.offset, each.size, each.place) for each in everything if each.size)
        for (shard, offset, size, _), (next_shard, next_offset, _, place) in itertools.pairwise(places):
            if shard == next_shard and offset + size > next_offset:
                damaged(self.path, place, f"two tensors share byte {next_offset} of file {shard}")

    # ---- reading a tensor

    def _read(self, entry: _Entry) -> NDArray[Any]:
        dtype = self._dtype(entry)
        with self._open(entry) as (file, shard):
            content, crc = _summed(file, shard, entry)
        if entry.kind == STRING:
            return _strings(shard, entry, content.tobytes(), self._byte_order)
        _verify(shard, entry, crc)
        if dtype == np.bool_ and content.max(initial=0) > 1:
            damaged(shard, entry.offset, f"tensor {entry.name!r} holds bytes that are neither true nor false")
        if self._byte_order != sys.byteorder:
            number = dtype.itemsize // (2 if dtype.kind == "c" else 1)
            content = content.view(f"u{number}").byteswap()
        return content.view(dtype).reshape(entry.shape)

    @contextmanager
    def _open(self, entry: _Entry) -> Iterator[tuple[FileIO, Path]]:
        """The file that has the bytes of a tensor, once it is known to be long enough, and its path."""
        dtype, count = self._dtype(entry), math.prod(entry.shape)
        # a string has at least the byte that says how long it is, and all together have a checksum of these
        fits = entry.size >= count + 4 if entry.kind == STRING else entry.size == count * dtype.itemsize
        if not fits:
            problem = f"tensor {entry.name!r} of shape {entry.shape} cannot have {entry.size} bytes"
            damaged(self.path, entry.place, problem)
        shard = Path(f"{self.prefix}.data-{entry.shard:05d}-of-{self._shards:05d}")
        with open_for_reading(shard) as file:
            size = os.fstat(file.fileno()).st_size
            if entry.offset + entry.size > size:
                problem = f"it ends, and tensor {entry.name!r} is {entry.size} bytes at byte {entry.offset}"
                damaged(shard, size, problem)
            yield file, shard

    def _join(self, entry: _Entry) -> NDArray[Any]:
        """Put the slices of a tensor together; every element must be in exactly one."""
        parts = [self._part(entry, extents) for extents in entry.slices]
        count = sum(math.prod(part.shape) for part, _ in parts)
        if count != math.prod(entry.shape):
            problem = (
                f"the slices of tensor {entry.name!r} have {count} elements, not {math.prod(entry.shape)}"
            )
            damaged(self.path, entry.place, f"{problem} as shape {entry.shape}")
        for part, _ in parts:  # before memory is taken for all of them
            with self._open(part):
                pass
        joined = np.empty(entry.shape, self._dtype(entry))
        filled = np.zeros(entry.shape, np.bool_)
        for part, region in parts:
            if filled[region].any():
                damaged(self.path, part.place, f"slices of tensor {entry.name!r} overlap")
            joined[region] = self._read(part)
            filled[region] = True
        return joined

    def _part(self, entry: _Entry, extents: Extents) -> tuple[_Entry, tuple[slice, ...]]:
        """The entry of a slice of a tensor, and the region of the tensor that it is."""
        shown = f"slice {extents} (start and length by dimension) of tensor {entry.name!r}"
        if len(extents) != len(entry.shape):
            damaged(self.path, entry.place, f"{shown} does not fit its shape {entry.shape}")
        region = []
        for (start, length), size in zip(extents, entry.shape, strict=True):
            stop = size if (start, length) == (0, _ALL) else start + length
            if not 0 <= start <= stop <= size:
                damaged(self.path, entry.place, f"{shown} does not fit its shape {entry.shape}")
            region.append(slice(start, stop))
        part = self._slices.get(_slice_key(entry.name, extents))
        if part is None:
            damaged(self.path, entry.place, f"{shown} is missing")
        shape = tuple(each.stop - each.start for each in region)
        if part.slices or (part.kind, part.shape) != (entry.kind, shape):
            damaged(self.path, part.place, f"{shown} is stored with another shape or dtype")
        return part, tuple(region)


# ---- the index


def _header(path: Path, found: TableEntry) -> tuple[int, ByteOrder]:
    """The number of files with the tensors' bytes, and the byte order in these."""
    header = _message(path, found, BundleHeaderProto, "the header of the bundle")
    version = header.version
    if version.min_consumer > VERSION or VERSION in version.bad_consumers:
        problem = f"needs a reader of version {version.min_consumer} of its format, this one has {VERSION}"
        raise CheckpointError(f"{path}: byte {found.offset}: the bundle {problem}: update foveal")
    if header.num_shards < 1:
        damaged(path, found.offset, f"a bundle cannot have {header.num_shards} files")
    if header.endianness not in (0, 1):
        damaged(path, found.offset, f"there is no byte order of number {header.endianness}")
    return header.num_shards, BYTE_ORDERS[header.endianness]


def _entry(path: Path, found: TableEntry, shards: int, shapes: dict[bytes, tuple[int, ...]]) -> _Entry:
    """What the index says of a tensor or of a slice, checked as far as it can be without the files.

    Args:
        path: the index.
        found: the entry in the table.
        shards: how many files there are.
        shapes: those that were decoded before, by their bytes: most occur often.
    """
    key, _, place = found
    try:
        name = key.decode() if key[0] else f"slice {key!r}"
    except UnicodeDecodeError:
        damaged(path, place, f"the name {key!r:.200} of a tensor is not UTF-8")
    message = _message(path, found, BundleEntryProto, f"the entry of {name!r}")
    shape = shapes.get(message.shape)
    if shape is None:
        shape = shapes[message.shape] = _shape(path, name, message.shape, place)
    offset, size, shard = message.offset, message.size, message.shard_id
    if offset < 0 or size < 0 or not 0 <= shard < shards:
        damaged(path, place, f"{name!r} cannot be {size} bytes at byte {offset} of file {shard} of {shards}")
    slices = tuple(map(_extents, message.slices)) if message.slices else ()
    return _Entry(name, message.dtype, shape, shard, offset, size, message.crc32c, slices, place)


def _shape(path: Path, name: str, encoded: bytes, place: int) -> tuple[int, ...]:
    try:
        message = TensorShapeProto.FromString(encoded)
    except DecodeError as error:
        damaged(path, place, f"the shape of {name!r} cannot be decoded: {error}")
    shape = tuple(dim.size for dim in message.dim)
    if message.unknown_rank or len(shape) > _DIMENSIONS or min(shape, default=0) < 0:
        problem = f"the shape of {name!r} is unknown, negative, or has over {_DIMENSIONS} dimensions"
        damaged(path, place, problem)
    if math.prod(size or 1 for size in shape) >= _TOO_LARGE:  # NumPy refuses it even where another size is 0
        damaged(path, place, f"the shape {shape} of {name!r} is too large")
    return shape


def _message(path: Path, found: TableEntry, kind: Any, what: str) -> Any:
    try:
        return kind.FromString(found.value)
    except DecodeError as error:
        damaged(path, found.offset, f"{what} cannot be decoded: {error}")


def _extents(message: Any) -> Extents:
    return tuple(
        (extent.start, extent.length if extent.HasField("length") else _ALL) for extent in message.extent
    )


def _slice_key(name: str, extents: Extents) -> bytes:
    """The key of a slice in the index, which sorts as name and numbers do (``ordered_code.cc``)."""
    text = name.encode().replace(b"\0", b"\0\xff") + b"\0\1"  # a byte 255 would change too: UTF-8 has none
    numbers = b"".join(_ordered(number) for extent in extents for number in extent)
    return b"\0" + text + (bytes([1, len(extents)]) if extents else b"\0") + numbers


def _ordered(number: int) -> bytes:
    """A signed integer in n bytes, whose n highest bits are inverted and say how many bytes there are."""
    length = (number if number >= 0 else ~number).bit_length() // 7 + 1
    marks = ((1 << length) - 1) << 7 * length
    return (number % (1 << 8 * length) ^ marks).to_bytes(length, "big")


# ---- the bytes


def _summed(file: FileIO, shard: Path, entry: _Entry) -> tuple[NDArray[np.uint8], int]:
    """The bytes of a tensor, which the file is known to have, and their CRC-32C."""
    content = np.empty(entry.size, np.uint8)
    file.seek(entry.offset)
    done = crc = 0
    while done < entry.size:
        chunk = content[done : done + _CHUNK]
        count = file.readinto(chunk.data)
        if not count:
            damaged(shard, entry.offset + done, "the file ended while it was read")
        crc = crc32c(chunk[:count], crc)
        done += count
    return content, crc


def _verify(shard: Path, entry: _Entry, crc: int) -> None:
    if (found := masked(crc)) != entry.crc:
        problem = f"the checksum of tensor {entry.name!r} is {found:08x}, not {entry.crc:08x} as stored"
        damaged(shard, entry.offset, problem)


def _strings(shard: Path, entry: _Entry, content: bytes, byte_order: ByteOrder) -> NDArray[np.object_]:
    """Decode strings: the length of each as a varint, the masked CRC-32C of the lengths, and their bytes.

    The CRC-32C of the tensor is that of the lengths as integers of 4 bytes (of 8 where one needs more), of
    the stored checksum of the lengths, and of the bytes.
    """
    lengths, at = [], 0
    try:
        for _ in range(math.prod(entry.shape)):
            length, at = varint(content, at)
            lengths.append(length)
    except ValueError as error:
        damaged(shard, entry.offset + at, f"the length of a string of tensor {entry.name!r} is {error}")
    start = at + 4
    if start + sum(lengths) != entry.size:
        problem = f"the strings of tensor {entry.name!r} have {sum(lengths)} bytes, not {entry.size - start}"
        damaged(shard, entry.offset, problem)
    crc = crc32c(string_lengths(lengths, byte_order))
    if masked(crc) != int.from_bytes(content[at:start], byte_order):
        damaged(shard, entry.offset + at, f"the checksum of the lengths of tensor {entry.name!r} is wrong")
    _verify(shard, entry, crc32c(content[at:], crc))
    strings = np.empty(len(lengths), np.object_)
    stops = list(itertools.accumulate(lengths, initial=start))
    strings[:] = [content[first:stop] for first, stop in itertools.pairwise(stops)]
    return strings.reshape(entry.shape)


def string_lengths(lengths: list[int], byte_order: ByteOrder) -> bytes:
    """The lengths of strings as they are checksummed."""
    return b"".join(each.to_bytes(4 if each >> 32 == 0 else 8, byte_order) for each in lengths)
