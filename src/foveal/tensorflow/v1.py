"""V1 checkpoints, as TensorFlow wrote them until 2017: all tensors in one table file, or in a file per shard.

Specification: TensorFlow's ``core/util/tensor_slice_writer.h``, ``tensor_slice_reader.cc`` and
``saved_tensor_slice_util.h``. The table's first value, under the empty key, is the header: names, shapes,
dtypes and slices of the tensors. Every other value is one slice with its elements. ``docs/formats.md`` has
the bytes.
"""

from __future__ import annotations

import difflib
import math
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # its wheels have no stubs

from foveal.errors import CheckpointError
from foveal.tensorflow.checkpoint_messages import DTYPES, STRING
from foveal.tensorflow.table import Table, TableEntry, damaged
from foveal.tensorflow.v1_messages import SavedTensorSlices

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Region = tuple[tuple[int, int], ...]  # the start and the length of a slice in each dimension

_VERSION = 1  # TF_CHECKPOINT_VERSION
_MAX_RANK = 64  # NumPy's
_CHUNK = 1 << 20  # bytes of varints that are decoded at a time
_FIELDS = {  # by the number of the dtype: where the elements are
    1: "float_val",
    2: "double_val",
    3: "int_val",
    4: "int_val",
    5: "int_val",
    6: "int_val",
    STRING: "string_val",
    8: "scomplex_val",
    9: "int64_val",
    10: "bool_val",
    17: "int_val",
    18: "dcomplex_val",
    19: "half_val",
}
_FIXED = {
    "float_val",
    "double_val",
    "scomplex_val",
    "dcomplex_val",
}  # as in memory; other numbers are varints


class _Place(NamedTuple):
    """Where a message is."""

    path: Path
    offset: int


@dataclass(frozen=True)
class _Tensor:
    """What the header says of a tensor."""

    place: _Place
    shape: tuple[int, ...]
    number: int  # of its dtype
    slices: dict[Region, None] = field(default_factory=dict)  # in the order of the file


class V1Checkpoint:
    """The tensors of a V1 checkpoint.

    Only the headers are read at first. The first tensor that is asked for has everything read, verified and
    kept: such files have all tensors in one stream.

    Attributes:
        path: the file; of a checkpoint in several files their pattern, ``PREFIX-?????-of-NNNNN``.
    """

    def __init__(self, path: Path | str) -> None:
        """Read the headers.

        Raises:
            DamagedCheckpointError: a file is no V1 checkpoint, or damaged; says where.
            CheckpointError: a file cannot be opened, or is of a later version.
        """
        self.path = Path(path)
        self._tables = [Table(file) for file in files_of(self.path)]
        if not self._tables:
            raise CheckpointError(f"{self.path}: there is no checkpoint of 0 files: name another")
        self._tensors: dict[str, _Tensor] = {}
        for table in self._tables:
            self._read_header(table)

    def names(self) -> list[str]:
        """The names of the tensors, in order."""
        return sorted(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, of all its slices together.

        Raises:
            CheckpointError: there is no such tensor.
        """
        return self._tensor(name).shape

    def dtype(self, name: str) -> np.dtype[Any]:
        """The dtype of a tensor; object, for bytes, where it holds strings.

        Raises:
            CheckpointError: there is no such tensor, or it has a dtype that is not supported.
        """
        tensor = self._tensor(name)
        if tensor.number not in _FIELDS:
            problem = f"has TensorFlow's dtype number {tensor.number}, which is not supported"
            raise CheckpointError(
                f"{tensor.place.path}: byte {tensor.place.offset}: tensor {name!r:.200} {problem}"
            )
        return DTYPES[tensor.number]

    def get(self, name: str) -> NDArray[Any]:
        """A tensor, its slices joined.

        Returns:
            A new array of the tensor's shape and dtype.

        Raises:
            DamagedCheckpointError: any part of the files is damaged, or the slices do not make up the tensor.
            CheckpointError: there is no such tensor, it has a dtype that is not supported, a file cannot be
                opened, or it does not fit in memory.
        """
        try:
            return self._read(name, self._tensor(name), self.dtype(name))
        except MemoryError:
            raise CheckpointError(
                f"{self.path}: tensor {name!r:.200} does not fit in memory: free some"
            ) from None

    def _read(self, name: str, tensor: _Tensor, dtype: np.dtype[Any]) -> NDArray[Any]:
        _require_whole(tensor, name)
        pieces = {}
        for region in tensor.slices:
            if (name, region) not in self._pieces:
                damaged(*tensor.place, f"{_shown(name, region)} is listed, but nowhere stored")
            place, data = self._pieces[name, region]
            try:
                values = _elements(data, tensor.number, dtype, _size(region))
            except ValueError as error:
                damaged(*place, f"{_shown(name, region)} {error}")
            pieces[region] = values.reshape([length for _, length in region])
        return next(iter(pieces.values())) if len(pieces) == 1 else _joined(tensor, name, dtype, pieces)

    def _tensor(self, name: str) -> _Tensor:
        if name not in self._tensors:
            near = difflib.get_close_matches(name, self._tensors, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "name one of those it has"
            raise CheckpointError(f"{self.path}: no tensor is named {name!r}: {hint}")
        return self._tensors[name]

    def _read_header(self, table: Table) -> None:
        first = next(table.entries(), None)
        if first is None or first.key:
            damaged(table.path, 0, "the header of a V1 checkpoint is missing")
        place = _Place(table.path, first.offset)
        header = _parse(place, first)
        if not header.HasField("meta"):
            problem = "this is no V1 checkpoint: if it is the index of a V2 one, name that without .index"
            raise CheckpointError(f"{table.path}: byte {place.offset}: {problem}")
        versions = header.meta.versions
        if versions.min_consumer > _VERSION or _VERSION in versions.bad_consumers:
            problem = f"needs a reader of version {versions.min_consumer}, this one has {_VERSION}"
            raise CheckpointError(f"{table.path}: byte {place.offset}: it {problem}: update foveal")
        for each in header.meta.tensor:
            shape = _shape(place, each)
            tensor = self._tensors.setdefault(each.name, _Tensor(place, shape, each.type))
            if (tensor.shape, tensor.number) != (shape, each.type):
                damaged(*place, f"tensor {each.name!r:.200} is listed twice, with different shapes or dtypes")
            for extents in each.slice:
                region = _region(place, each.name, shape, extents)
                if region in tensor.slices:
                    damaged(*place, f"{_shown(each.name, region)} is listed twice")
                tensor.slices[region] = None

    @cached_property
    def _pieces(self) -> dict[tuple[str, Region], tuple[_Place, Any]]:
        """The stored slices: where each is, and the message with its elements."""
        pieces: dict[tuple[str, Region], tuple[_Place, Any]] = {}
        for table in self._tables:
            for entry in table.entries():
                if not entry.key:
                    continue
                place = _Place(table.path, entry.offset)
                stored = _parse(place, entry).data
                tensor = self._tensors.get(stored.name)
                region = tensor and _region(place, stored.name, tensor.shape, stored.slice)
                if tensor is None or region not in tensor.slices:
                    damaged(*place, f"a slice of tensor {stored.name!r:.200} is stored, but nowhere listed")
                if (stored.name, region) in pieces:
                    damaged(*place, f"{_shown(stored.name, region)} is stored twice")
                pieces[stored.name, region] = place, stored.data
        return pieces


def files_of(path: Path) -> Iterator[Path]:
    """The files of a V1 checkpoint: one for each shard where the path is such a pattern, else itself."""
    pattern = re.fullmatch(r"(.*-)\?{5}(-of-([0-9]{5}))", path.name)
    if pattern is None:
        yield path
    else:
        for shard in range(int(pattern[3])):
            yield path.with_name(f"{pattern[1]}{shard:05}{pattern[2]}")


# ---- messages


def _parse(place: _Place, entry: TableEntry) -> Any:
    try:
        return SavedTensorSlices.FromString(entry.value)
    except DecodeError as error:
        damaged(*place, f"the value of key {entry.key!r:.200} is no SavedTensorSlices: {error}")


def _shape(place: _Place, meta: Any) -> tuple[int, ...]:
    """The shape that a header gives a tensor."""
    shape = tuple(dimension.size for dimension in meta.shape.dim)
    if meta.shape.unknown_rank or min(shape, default=0) < 0:
        damaged(*place, f"tensor {meta.name!r:.200} has no full shape")
    # NumPy, whose sizes are below 2^63, counts 0 as 1, too; no element has more than 16 bytes
    if len(shape) > _MAX_RANK or 16 * math.prod(size or 1 for size in shape) >= 1 << 63:
        damaged(*place, f"tensor {meta.name!r:.200} has an impossible shape of {len(shape)} dimensions")
    return shape


def _region(place: _Place, name: str, shape: tuple[int, ...], slice_: Any) -> Region:
    """The part of a tensor that a slice is; an extent without a length is all of a dimension."""
    extents = slice_.extent
    if len(extents) != len(shape):
        damaged(*place, f"a slice of tensor {name!r:.200} has {len(extents)} dimensions, not {len(shape)}")
    region = tuple(
        (extent.start, extent.length if extent.HasField("length") else size)
        for extent, size in zip(extents, shape, strict=True)
    )
    for (start, length), size in zip(region, shape, strict=True):
        if start < 0 or length < 0 or start + length > size:
            damaged(*place, f"{_shown(name, region)} is not within its shape {shape}")
    return region


def _shown(name: str, region: Region) -> str:
    text = ", ".join(f"{start}:{start + length}" for start, length in region)
    return f"slice [{text:.200}] of tensor {name!r:.200}"


def _size(region: Region) -> int:
    return math.prod(length for _, length in region)


# ---- elements


def _require_whole(tensor: _Tensor, name: str) -> None:
    """Refuse a tensor whose slices have another number of elements, before memory is taken for it."""
    found, wanted = sum(map(_size, tensor.slices)), math.prod(tensor.shape)
    if found != wanted or not tensor.slices:
        damaged(
            *tensor.place, f"the slices of tensor {name!r:.200} have {found} elements, its shape {wanted}"
        )


def _joined(
    tensor: _Tensor, name: str, dtype: np.dtype[Any], pieces: dict[Region, NDArray[Any]]
) -> NDArray[Any]:
    """A tensor put together; as many elements are there as it has, so without an overlap none is missing."""
    whole, filled = np.empty(tensor.shape, dtype), np.zeros(tensor.shape, bool)
    for region, piece in pieces.items():
        at = tuple(slice(start, start + length) for start, length in region)
        if filled[at].any():
            damaged(*tensor.place, f"{_shown(name, region)} overlaps another")
        whole[at], filled[at] = piece, True
    return whole


def _elements(data: Any, number: int, dtype: np.dtype[Any], count: int) -> NDArray[Any]:
    """The elements of a slice, as a new flat array.

    Raises:
        ValueError: there are not ``count`` of them, or they are none of that dtype; says so.
    """
    stored = getattr(data, _FIELDS[number])
    if number == STRING:
        _require(len(stored), count, "strings")
        return np.array(stored[:], object)
    content = b"".join(stored)
    if _FIELDS[number] in _FIXED:
        _require(len(content), count * dtype.itemsize, "bytes")
        return np.frombuffer(content, dtype.newbyteorder("<")).astype(dtype)
    raw = np.frombuffer(content, np.uint8)
    _require(int(np.count_nonzero(raw < 128)), count, "integers")
    kind = np.dtype(np.uint16) if dtype == np.float16 else dtype
    values, at = np.empty(count, kind), 0
    for integers in _integers(raw):
        part = integers.astype(kind)
        if not np.array_equal(part, integers):
            raise ValueError(f"has integers that are no {kind}")
        values[at : at + len(part)] = part
        at += len(part)
    return values.view(dtype)


def _require(found: int, wanted: int, what: str) -> None:
    if found != wanted:
        raise ValueError(f"has {found} {what}, not {wanted}")


def _integers(raw: NDArray[np.uint8]) -> Iterator[NDArray[np.int64]]:
    """Decode varints, some at a time, so that little memory is needed.

    Raises:
        ValueError: one is cut off, or longer than ten bytes.
    """
    start = 0
    while start < len(raw):
        chunk = raw[start : start + _CHUNK]
        ends = np.flatnonzero(chunk < 128)  # the last byte of each
        if not len(ends):
            raise ValueError("has an integer that does not end")
        starts = np.concatenate(([0], ends[:-1] + 1))
        lengths = ends - starts + 1
        if lengths.max() > 10:
            raise ValueError("has an integer of more than ten bytes")
        values = np.zeros(len(ends), np.uint64)
        for byte in range(lengths.max()):
            longer = lengths > byte
            bits = (chunk[starts[longer] + byte] & 127).astype(np.uint64)
            values[longer] |= bits << np.uint64(7 * byte)
        yield values.view(np.int64)
        start += int(ends[-1]) + 1
