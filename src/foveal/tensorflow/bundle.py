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
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # its wheels have no stubs

from foveal.checkpoints.checksum import crc32c
from foveal.checkpoints.untrusted import open_for_reading
from foveal.errors import CheckpointError
from foveal.processors import processors
from foveal.tensorflow.checkpoint_messages import (
    DTYPES,
    STRING,
    BundleEntryHead,
    BundleEntryProto,
    BundleHeaderProto,
    TensorShapeProto,
)
from foveal.tensorflow.record_framing import masked
from foveal.tensorflow.table import Table, TableEntry, damaged, varint

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from io import FileIO

    from numpy.typing import NDArray

__all__ = ["Bundle"]

ByteOrder = Literal["little", "big"]
VERSION: Final = 1  # of the format; what a file may demand of its reader
_DIMENSIONS = 64  # NumPy has no more
_TOO_LARGE = 1 << 58  # elements: no element has more than 16 bytes, and NumPy's sizes are below 2^63
_ALL = -1  # the length of a slice that is all of a dimension
_CHUNK = 1 << 19  # bytes: what was read is still in the processor's cache when it is checksummed
_GROUP = 1 << 23  # bytes that are read into one piece of memory: NumPy asks for huge pages from 4 MB on
_ALIGNMENT = 16  # bytes; of what NumPy allocates, too
_THREADS = 4  # more gain nothing: checksums are computed in turn, as they hold Python's lock
BYTE_ORDERS: Final[tuple[ByteOrder, ...]] = ("little", "big")  # by the number that the header has for them

Extents = tuple[tuple[int, int], ...]  # of a slice, by dimension: its start, and its length or -1 for all


class _Entry(NamedTuple):
    """What the index says of a tensor, or of one slice of it; they sort as their bytes lie.

    Attributes:
        shard, offset, size: where its bytes are.
        place: the byte of the index at which the entry stands.
        name: for messages.
        kind: the number of its dtype.
        shape: of the whole.
        crc: the CRC-32C of its bytes, masked.
        slices: those that it is stored in, if it is.
    """

    shard: int
    offset: int
    size: int
    place: int
    name: str
    kind: int
    shape: tuple[int, ...]
    crc: int
    slices: tuple[Extents, ...]


_new_entry = partial(tuple.__new__, _Entry)  # what _Entry() calls: an index may have very many


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
        found = Table(self.path).entries()
        first = next(found, None)
        if first is None or first.key:
            damaged(self.path, first.offset if first else 0, "the header of the bundle is missing")
        self._shards, self._byte_order = _header(self.path, first)
        self._tensors, self._slices = _entries(self.path, found, self._shards)
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
        group = [self._named(name)]
        try:
            return self._load(group, self._memory(group))[0]
        except MemoryError:
            raise CheckpointError(
                f"{self.path}: tensor {name!r:.200} does not fit in memory: free some"
            ) from None

    def read(self, names: Iterable[str] | None = None, threads: int | None = None) -> dict[str, NDArray[Any]]:
        """Read tensors as :meth:`get` does, several at once and each file from its beginning to its end.

        Small ones share memory, some MB of it: the system gives it in fewer, larger pages, which is faster,
        and keeps all of it for as long as any of them is used.

        Args:
            names: the tensors; None for all of them.
            threads: how many read; by default as many as there are processors, but no more than gain.

        Returns:
            The tensors by name, in the order of ``names``.

        Raises:
            DamagedCheckpointError, CheckpointError: as :meth:`get`.
        """
        wanted = {name: self._named(name) for name in (self._tensors if names is None else names)}
        groups = _groups(wanted.values())
        arrays: dict[str, NDArray[Any]] = {}
        try:
            # by this thread, as glibc never keeps for later what other threads allocate
            memory = [self._memory(group) for group in groups]
            with ThreadPoolExecutor(threads or min(processors(), _THREADS)) as pool:
                for group, loaded in zip(groups, pool.map(self._load, groups, memory), strict=True):
                    arrays.update((entry.name, array) for entry, array in zip(group, loaded, strict=True))
        except MemoryError:
            problem = "the tensors do not fit in memory: free some, or read fewer at once"
            raise CheckpointError(f"{self.path}: {problem}") from None
        return {name: arrays[name] for name in wanted}

    def _named(self, name: str) -> _Entry:
        if (entry := self._tensors.get(name)) is not None:
            return entry
        near = difflib.get_close_matches(name, self._tensors, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "name one of those it has"
        raise CheckpointError(f"{self.path}: no tensor is named {name!r:.200}: {hint}")

    def _dtype(self, entry: _Entry) -> np.dtype[Any]:
        if entry.kind not in DTYPES:
            raise CheckpointError(
                f"{self.path}: byte {entry.place}: tensor {entry.name!r:.200} has TensorFlow's dtype number "
                f"{entry.kind}, which is not supported"
            )
        return DTYPES[entry.kind]

    def _require_apart(self) -> None:
        """Refuse tensors that share bytes: a small file would fill a large memory."""
        everything = itertools.chain(self._tensors.values(), self._slices.values())
        for entry, after in itertools.pairwise(sorted(each for each in everything if each.size)):
            if entry.shard == after.shard and entry.offset + entry.size > after.offset:
                damaged(
                    self.path, after.place, f"two tensors share byte {after.offset} of file {after.shard}"
                )

    # ---- reading a tensor

    def _memory(self, group: list[_Entry]) -> NDArray[np.uint8]:
        """Memory for a group (see :func:`_groups`) whose file is known to be long enough; for slices none."""
        if group[0].slices:
            return np.empty(0, np.uint8)
        self._require_there(group)
        return np.empty(sum(map(_room, group)), np.uint8)

    def _load(self, group: list[_Entry], memory: NDArray[np.uint8]) -> list[NDArray[Any]]:
        """Read the tensors of a group, those that are not in slices into the memory for it."""
        if group[0].slices:
            return [self._join(group[0])]
        starts = itertools.accumulate(map(_room, group), initial=0)
        with self._open(group[0]) as (file, shard):
            return [
                self._read_into(memory[start : start + entry.size], file, shard, entry)
                for start, entry in zip(starts, group, strict=False)
            ]

    def _read_into(
        self, content: NDArray[np.uint8], file: FileIO, shard: Path, entry: _Entry
    ) -> NDArray[Any]:
        """Read a tensor into memory of its size, and verify it."""
        dtype, crc = self._dtype(entry), _fill(content, file, shard, entry)
        if entry.kind == STRING:
            return _strings(shard, entry, content.tobytes(), self._byte_order)
        _verify(shard, entry, crc)
        if dtype == np.bool_ and content.max(initial=0) > 1:
            damaged(
                shard, entry.offset, f"tensor {entry.name!r:.200} holds bytes that are neither true nor false"
            )
        if self._byte_order != sys.byteorder:
            number = dtype.itemsize // (2 if dtype.kind == "c" else 1)
            content.view(f"u{number}").byteswap(inplace=True)
        return content.view(dtype).reshape(entry.shape)

    @contextmanager
    def _open(self, entry: _Entry) -> Iterator[tuple[FileIO, Path]]:
        """The file that has the bytes of a tensor, and its path."""
        shard = Path(f"{self.prefix}.data-{entry.shard:05d}-of-{self._shards:05d}")
        with open_for_reading(shard) as file:
            yield file, shard

    def _require_there(self, group: list[_Entry]) -> None:
        """Refuse tensors with too few or too many bytes for their shapes, or beyond the end of their file."""
        for entry in group:
            dtype, count = self._dtype(entry), math.prod(entry.shape)
            # a string has at least the byte that says how long it is, and all have a checksum of these
            fits = entry.size >= count + 4 if entry.kind == STRING else entry.size == count * dtype.itemsize
            if not fits:
                problem = f"tensor {entry.name!r:.200} of shape {entry.shape} cannot have {entry.size} bytes"
                damaged(self.path, entry.place, problem)
        with self._open(group[0]) as (file, shard):
            size = os.fstat(file.fileno()).st_size
        for entry in group:
            if entry.offset + entry.size > size:
                problem = (
                    f"it ends, and tensor {entry.name!r:.200} is {entry.size} bytes at byte {entry.offset}"
                )
                damaged(shard, size, problem)

    def _join(self, entry: _Entry) -> NDArray[Any]:
        """Put the slices of a tensor together; every element must be in exactly one."""
        parts = [self._part(entry, extents) for extents in entry.slices]
        count = sum(math.prod(part.shape) for part, _ in parts)
        if count != math.prod(entry.shape):
            problem = f"the slices of tensor {entry.name!r:.200} have {count} elements, not"
            damaged(self.path, entry.place, f"{problem} {math.prod(entry.shape)} as shape {entry.shape}")
        for part, _ in parts:  # before memory is taken for all of them
            self._require_there([part])
        joined = np.empty(entry.shape, self._dtype(entry))
        filled = np.zeros(entry.shape, np.bool_)
        for part, region in parts:
            if filled[region].any():
                damaged(self.path, part.place, f"slices of tensor {entry.name!r:.200} overlap")
            [joined[region]] = self._load([part], self._memory([part]))
            filled[region] = True
        return joined

    def _part(self, entry: _Entry, extents: Extents) -> tuple[_Entry, tuple[slice, ...]]:
        """The entry of a slice of a tensor, and the region of the tensor that it is."""
        shown = f"slice {extents!s:.200} (start and length by dimension) of tensor {entry.name!r:.200}"
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
    try:
        header = BundleHeaderProto.FromString(found.value)
    except DecodeError as error:
        damaged(path, found.offset, f"the header of the bundle cannot be decoded: {error}")
    version = header.version
    if version.min_consumer > VERSION or VERSION in version.bad_consumers:
        problem = f"needs a reader of version {version.min_consumer} of its format, this one has {VERSION}"
        raise CheckpointError(f"{path}: byte {found.offset}: the bundle {problem}: update foveal")
    if header.num_shards < 1:
        damaged(path, found.offset, f"a bundle cannot have {header.num_shards} files")
    if header.endianness not in (0, 1):
        damaged(path, found.offset, f"there is no byte order of number {header.endianness}")
    return header.num_shards, BYTE_ORDERS[header.endianness]


def _entries(
    path: Path, found: Iterable[TableEntry], shards: int
) -> tuple[dict[str, _Entry], dict[bytes, _Entry]]:
    """What the index says of tensors and of slices, checked as far as it can be without the files.

    There may be very many; so one message is used for all, and shapes are decoded once.

    Args:
        path: the index.
        found: the entries of the table after the header.
        shards: how many files there are.

    Returns:
        The tensors by name, and the slices by their keys.
    """
    tensors: dict[str, _Entry] = {}
    slices: dict[bytes, _Entry] = {}
    shapes: dict[bytes, tuple[int, ...]] = {}  # by their bytes: most occur often
    message = BundleEntryHead()
    for key, value, place in found:
        try:
            name = key.decode() if key[0] else f"slice {key!r:.200}"
        except UnicodeDecodeError:
            damaged(path, place, f"the name {key!r:.200} of a tensor is not UTF-8")
        try:
            message.ParseFromString(value)
            parts = _slices(value) if message.HasField("slices") else ()
        except DecodeError as error:
            damaged(path, place, f"the entry of {name!r:.200} cannot be decoded: {error}")
        encoded = message.shape
        shape = shapes.get(encoded)
        if shape is None:
            shape = shapes[encoded] = _shape(path, name, encoded, place)
        offset, size, shard = message.offset, message.size, message.shard_id
        if offset < 0 or size < 0 or not 0 <= shard < shards:
            problem = f"{name!r:.200} cannot be {size} bytes at byte {offset} of file {shard} of {shards}"
            damaged(path, place, problem)
        entry = _new_entry((shard, offset, size, place, name, message.dtype, shape, message.crc32c, parts))
        if key[0]:
            tensors[name] = entry
        else:
            slices[key] = entry
    return tensors, slices


def _slices(encoded: bytes) -> tuple[Extents, ...]:
    """The slices that an entry lists."""
    return tuple(
        tuple((extent.start, extent.length if extent.HasField("length") else _ALL) for extent in part.extent)
        for part in BundleEntryProto.FromString(encoded).slices
    )


def _shape(path: Path, name: str, encoded: bytes, place: int) -> tuple[int, ...]:
    try:
        message = TensorShapeProto.FromString(encoded)
    except DecodeError as error:
        damaged(path, place, f"the shape of {name!r:.200} cannot be decoded: {error}")
    shape = tuple(dim.size for dim in message.dim)
    if message.unknown_rank or len(shape) > _DIMENSIONS or min(shape, default=0) < 0:
        problem = f"the shape of {name!r:.200} is unknown, negative, or has over {_DIMENSIONS} dimensions"
        damaged(path, place, problem)
    if math.prod(size or 1 for size in shape) >= _TOO_LARGE:  # NumPy refuses it even where another size is 0
        damaged(path, place, f"the shape {shape} of {name!r:.200} is too large")
    return shape


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


def _groups(entries: Iterable[_Entry]) -> list[list[_Entry]]:
    """What to read one after another: tensors of about ``_GROUP`` bytes in a file, or one in slices."""
    entries = sorted(entries)
    groups = [[entry] for entry in entries if entry.slices]
    whole = (entry for entry in entries if not entry.slices)
    for _, members in itertools.groupby(whole, key=lambda entry: entry.shard):
        room = 0
        for entry in members:
            if room <= 0:
                groups.append([])
                room = _GROUP
            groups[-1].append(entry)
            room -= entry.size
    return groups


def _room(entry: _Entry) -> int:
    """The bytes that a tensor takes in memory, up to where another may begin."""
    return entry.size + -entry.size % _ALIGNMENT


def _fill(content: NDArray[np.uint8], file: FileIO, shard: Path, entry: _Entry) -> int:
    """Read the bytes of a tensor, which the file is known to have; returns their CRC-32C."""
    file.seek(entry.offset)
    done = crc = 0
    while done < entry.size:
        chunk = content[done : done + _CHUNK]
        count = file.readinto(chunk.data)
        if not count:
            damaged(shard, entry.offset + done, "the file ended while it was read")
        crc = crc32c(chunk[:count], crc)
        done += count
    return crc


def _verify(shard: Path, entry: _Entry, crc: int) -> None:
    if (found := masked(crc)) != entry.crc:
        problem = f"the checksum of tensor {entry.name!r:.200} is {found:08x}, not {entry.crc:08x} as stored"
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
        damaged(shard, entry.offset + at, f"the length of a string of tensor {entry.name!r:.200} is {error}")
    start = at + 4
    if start + sum(lengths) != entry.size:
        problem = (
            f"the strings of tensor {entry.name!r:.200} have {sum(lengths)} bytes, not {entry.size - start}"
        )
        damaged(shard, entry.offset, problem)
    crc = crc32c(string_lengths(lengths, byte_order))
    if masked(crc) != int.from_bytes(content[at:start], byte_order):
        damaged(
            shard, entry.offset + at, f"the checksum of the lengths of tensor {entry.name!r:.200} is wrong"
        )
    _verify(shard, entry, crc32c(content[at:], crc))
    strings = np.empty(len(lengths), np.object_)
    stops = list(itertools.accumulate(lengths, initial=start))
    strings[:] = [content[first:stop] for first, stop in itertools.pairwise(stops)]
    return strings.reshape(entry.shape)


def string_lengths(lengths: list[int], byte_order: ByteOrder) -> bytes:
    """The lengths of strings as they are checksummed."""
    return b"".join(each.to_bytes(4 if each >> 32 == 0 else 8, byte_order) for each in lengths)
