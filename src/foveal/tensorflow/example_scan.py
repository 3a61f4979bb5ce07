"""The compiled parser of Examples: straight from the bytes of a batch into columns.

It understands what writers write (the specification is protobuf's page "Encoding"): known fields only, an
entry's key before its value, one list in a feature; lists of numbers packed or not. It gives up at anything
else, be it unusual or wrong, and then the protobuf library decides.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from foveal.tensorflow.example import FixedLength, Ragged
from foveal.tensorflow.record_scan import kernel

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from foveal.tensorflow.example import Columns, VariableLength
    from foveal.tensorflow.records import RecordBlock

_MISSING, _BYTES, _FLOATS, _INTEGERS = range(4)  # the lists' field numbers in a Feature
_KINDS = {"bytes_list": _BYTES, "float_list": _FLOATS, "int64_list": _INTEGERS}
_KIND, _START, _STOP, _COUNT = range(4)  # the columns of a table of places
_FIRST_DELIMITED, _SECOND_DELIMITED = 0x0A, 0x12  # tags: field number << 3 | wire type
_FIRST_VARINT, _FIRST_FIXED32 = 0x08, 0x0D


def parse(records: RecordBlock, specification: Mapping[str, FixedLength | VariableLength]) -> Columns | None:
    """What ``example.parse_batch`` gives; None where the library has to decide."""
    try:
        names = [name.encode() for name in specification]
    except UnicodeEncodeError:
        return None
    if len(records) and int((records.stops - records.starts).max()) >= 1 << 31:
        return None  # protobuf's own limit
    content = np.frombuffer(records.content, np.uint8)
    places = np.zeros((len(names), len(records), 4), np.int64)
    name_stops = np.cumsum([0, *map(len, names)], dtype=np.int64)
    joined = np.frombuffer(b"".join(names), np.uint8)
    if not _locate(content, records.starts, records.stops, joined, name_stops, places):
        return None
    columns: Columns = {}
    for table, (name, wanted) in zip(places, specification.items(), strict=True):
        column = _column(records.content, content, table, wanted)
        if column is None:
            return None
        columns[name] = column
    return columns


def _column(
    stored: bytes, content: NDArray[np.uint8], table: NDArray[np.int64], wanted: FixedLength | VariableLength
) -> NDArray[Any] | Ragged | None:
    """One feature of all records from the table of its places."""
    kind, counts = _KINDS[wanted.kind], table[:, _COUNT]
    missing = table[:, _KIND] == _MISSING
    if (~missing & (table[:, _KIND] != kind)).any():
        return None
    if isinstance(wanted, FixedLength):
        if (counts[~missing] != wanted.size).any() or (missing.any() and wanted.filling is None):
            return None
        counts = np.full(len(table), wanted.size)
    splits = np.zeros(len(table) + 1, np.int64)
    np.cumsum(counts, out=splits[1:])
    values = _values(stored, content, table, kind, splits)
    if not isinstance(wanted, FixedLength):
        return Ragged(values, splits)
    if missing.any():
        values.reshape(len(table), wanted.size)[missing] = wanted.filling
    return values.reshape(len(table), *wanted.shape)


def _values(
    stored: bytes, content: NDArray[np.uint8], table: NDArray[np.int64], kind: int, splits: NDArray[np.int64]
) -> NDArray[Any]:
    """The values of all records, flat; those of records without are left open."""
    total = int(splits[-1])
    if kind == _INTEGERS:
        integers = np.empty(total, np.int64)
        _read_integers(content, table, splits, integers)
        return integers
    if kind == _FLOATS:
        bits = np.empty(total, np.uint32)
        _read_floats(content, table, splits, bits)
        return bits.view(np.float32)
    spans = np.zeros((total, 2), np.int64)
    _read_spans(content, table, splits, spans)
    strings = np.empty(total, object)
    strings[:] = [stored[start:stop] for start, stop in spans.tolist()]
    return strings


@kernel
def _varint(content: NDArray[np.uint8], at: int, stop: int) -> tuple[np.uint64, int]:
    """The varint at a byte, and the byte after it: -1 where it is cut off or has more than 64 bits."""
    value = np.uint64(0)
    for shift in range(0, 70, 7):
        if at >= stop:
            return value, -1
        byte = content[at]
        at += 1
        if shift == 63 and byte > 1:
            return value, -1
        value |= np.uint64(byte & 127) << np.uint64(shift)
        if byte < 128:
            return value, at
    return value, -1


@kernel
def _delimited(content: NDArray[np.uint8], at: int, stop: int) -> tuple[int, int]:
    """Where the content of a field begins and ends whose length stands at ``at``; -1, -1 to give up."""
    length, start = _varint(content, at, stop)
    if start < 0 or length > np.uint64(stop - start) or (start > at + 1 and content[start - 1] == 0):
        return -1, -1
    return start, start + np.int64(length)  # type: ignore[return-value]  # compiled, it is an int64 as others


@kernel
def _field(content: NDArray[np.uint8], at: int, stop: int, tag: int) -> tuple[int, int]:
    """Where the content of the field of this tag begins and ends; -1, -1 to give up: there is another."""
    if at >= stop or content[at] != tag:
        return -1, -1
    return _delimited(content, at + 1, stop)


@kernel
def _values_at(content: NDArray[np.uint8], kind: int, at: int, stop: int) -> tuple[int, int]:
    """Where the values in a list's next field begin and end, one or packed; end -1 to give up."""
    tag = content[at]
    if tag == _FIRST_DELIMITED:
        return _delimited(content, at + 1, stop)
    if kind == _INTEGERS and tag == _FIRST_VARINT:
        _, end = _varint(content, at + 1, stop)
        return at + 1, end
    if kind == _FLOATS and tag == _FIRST_FIXED32 and at + 5 <= stop:
        return at + 1, at + 5
    return -1, -1


@kernel
def _count(content: NDArray[np.uint8], kind: int, at: int, stop: int) -> int:
    """How many values a list has; -1 to give up."""
    count = 0
    while at < stop:
        start, at = _values_at(content, kind, at, stop)
        if at < 0:
            return -1
        if kind == _BYTES:
            count += 1
        elif kind == _FLOATS:
            if (at - start) % 4:
                return -1
            count += (at - start) // 4
        else:
            while start < at:
                _, start = _varint(content, start, at)
                if start < 0:
                    return -1
                count += 1
    return count


@kernel
def _list(content: NDArray[np.uint8], at: int, stop: int) -> tuple[int, int, int, int]:
    """Kind, start, stop and count of the list that is all of a Feature; count -1 to give up."""
    tag = content[at]
    if tag == 0x0A:
        kind = _BYTES
    elif tag == 0x12:
        kind = _FLOATS
    elif tag == 0x1A:
        kind = _INTEGERS
    else:
        return 0, 0, 0, -1
    start, end = _delimited(content, at + 1, stop)
    if end != stop:
        return 0, 0, 0, -1
    return kind, start, end, _count(content, kind, start, end)


@kernel
def _which(
    content: NDArray[np.uint8],
    start: int,
    stop: int,
    names: NDArray[np.uint8],
    name_stops: NDArray[np.int64],
) -> int:
    """The number of the name that stands there; -1 for another, -2 to give up: it may not be valid UTF-8."""
    for feature in range(len(name_stops) - 1):
        first = name_stops[feature]
        if name_stops[feature + 1] - first != stop - start:
            continue
        at = start
        while at < stop and content[at] == names[first + at - start]:
            at += 1
        if at == stop:
            return feature
    for at in range(start, stop):
        if content[at] >= 128:
            return -2
    return -1


@kernel
def _locate_entry(
    content: NDArray[np.uint8],
    at: int,
    stop: int,
    names: NDArray[np.uint8],
    name_stops: NDArray[np.int64],
    record: int,
    places: NDArray[np.int64],
) -> bool:
    """Note the place of the feature in one entry of the map; False to give up."""
    key_start, at = _field(content, at, stop, _FIRST_DELIMITED)
    if at < 0:
        return False
    feature = _which(content, key_start, at, names, name_stops)
    kind, start, end, count = _MISSING, 0, 0, 0
    if at < stop:
        at, value_stop = _field(content, at, stop, _SECOND_DELIMITED)
        if value_stop != stop:
            return False
        if at < stop:
            kind, start, end, count = _list(content, at, stop)
    if feature == -2 or count < 0:
        return False
    if feature >= 0:  # of several entries of one name the last counts
        places[feature, record, _KIND], places[feature, record, _START] = kind, start
        places[feature, record, _STOP], places[feature, record, _COUNT] = end, count
    return True


@kernel
def _locate(
    content: NDArray[np.uint8],
    starts: NDArray[np.int64],
    stops: NDArray[np.int64],
    names: NDArray[np.uint8],
    name_stops: NDArray[np.int64],
    places: NDArray[np.int64],
) -> bool:
    """Fill ``places``, int64 ``[features, records, 4]``, with each name's last list; False to give up."""
    for record in range(len(starts)):
        at, stop = starts[record], stops[record]
        while at < stop:
            at, features_stop = _field(content, at, stop, _FIRST_DELIMITED)
            if at < 0:
                return False
            while at < features_stop:
                start, at = _field(content, at, features_stop, _FIRST_DELIMITED)
                if at < 0 or not _locate_entry(content, start, at, names, name_stops, record, places):
                    return False
    return True


@kernel
def _read_integers(
    content: NDArray[np.uint8], table: NDArray[np.int64], splits: NDArray[np.int64], out: NDArray[np.int64]
) -> None:
    for record in range(len(table)):
        at, stop, to = table[record, _START], table[record, _STOP], splits[record]
        while at < stop:
            start, at = _values_at(content, _INTEGERS, at, stop)
            while start < at:
                value, start = _varint(content, start, at)
                out[to] = np.int64(value)
                to += 1


@kernel
def _read_floats(
    content: NDArray[np.uint8], table: NDArray[np.int64], splits: NDArray[np.int64], out: NDArray[np.uint32]
) -> None:
    for record in range(len(table)):
        at, stop, to = table[record, _START], table[record, _STOP], splits[record]
        while at < stop:
            start, at = _values_at(content, _FLOATS, at, stop)
            while start < at:
                bits = np.uint32(0)
                for i in range(4):
                    bits |= np.uint32(content[start + i]) << np.uint32(8 * i)
                out[to] = bits
                start, to = start + 4, to + 1


@kernel
def _read_spans(
    content: NDArray[np.uint8], table: NDArray[np.int64], splits: NDArray[np.int64], out: NDArray[np.int64]
) -> None:
    for record in range(len(table)):
        at, stop, to = table[record, _START], table[record, _STOP], splits[record]
        while at < stop:
            start, at = _values_at(content, _BYTES, at, stop)
            out[to, 0], out[to, 1] = start, at
            to += 1
