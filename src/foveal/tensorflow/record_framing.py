"""The framing of TFRecord files: each record stands between its length and checksums.

Specification: TensorFlow's ``core/lib/io/record_writer.h``. A record is a little-endian uint64 length, the
masked CRC-32C of those eight bytes, the data, and the masked CRC-32C of the data. The file may be compressed
as a whole, with gzip or zlib.

    RecordError (a DataError)    names the file, the record (from 0) and the byte at which that begins
    ├── TruncatedRecordError     the file ends inside the record
    ├── RecordChecksumError      its length or its data are not those that were written (a CorruptRecordError)
    ├── RecordLimitError         it is longer than the caller allows
    └── UnpackingError           the compression around the records is damaged
"""

from __future__ import annotations

import functools
import struct
from pathlib import Path

import google_crc32c

from foveal.errors import CorruptRecordError, DataError, UsageError

_MASK_DELTA = 0xA282EAD8
HEADER = struct.Struct("<QI")
FOOTER = struct.Struct("<I")
WINDOW_BITS = {
    None: None,
    "gzip": 31,
    "zlib": 15,
}  # as zlib takes them: 16 more for gzip's header and trailer


class RecordError(DataError):
    """A record cannot be read.

    Attributes:
        path: the file.
        record: the record's number, from 0.
        offset: the byte at which it begins; in a compressed file, of what that unpacks to.
    """

    def __init__(self, path: Path | str, record: int, offset: int, problem: str) -> None:
        self.path, self.record, self.offset = Path(path), record, offset
        super().__init__(f"{path} record {record}, at byte {offset}: {problem}")


class TruncatedRecordError(RecordError):
    """The file ends inside the record, or the record claims more bytes than the file has."""


class RecordChecksumError(RecordError, CorruptRecordError):
    """The length or the data of the record are not those that were written."""


class RecordLimitError(RecordError):
    """A record of a compressed file claims to be longer than the caller allows."""


class UnpackingError(RecordError):
    """The gzip or zlib stream around the records is damaged or cut off."""


Place = tuple[Path | str, int, int]  # the first three arguments of a RecordError


def masked(crc: int) -> int:
    """A CRC-32C as it is stored: changed, so that data which contain their own checksum do not defeat it."""
    return ((crc >> 15 | crc << 17) + _MASK_DELTA) & 0xFFFFFFFF


def masked_crc(data: bytes) -> int:
    """The CRC-32C of ``data`` as it is stored."""
    return masked(google_crc32c.value(data))


def frame(data: bytes) -> bytes:
    """One record with its framing."""
    return b"".join((header_of(len(data)), data, FOOTER.pack(masked_crc(data))))


@functools.lru_cache(4096)
def header_of(length: int) -> bytes:
    """The 12 bytes before data of that length."""
    packed = struct.pack("<Q", length)
    return packed + FOOTER.pack(masked_crc(packed))


def length_of(header: bytes, place: Place) -> int:
    """The length that a header states.

    Raises:
        RecordError: it is cut off or damaged.
    """
    if len(header) < 12:
        raise TruncatedRecordError(*place, f"cut off in its header, after {len(header)} of 12 bytes")
    length: int = HEADER.unpack(header)[0]
    verify(header[:8], header[8:], "length", place)
    return length


def require(length: int, left: int, place: Place) -> None:
    """Refuse a record whose data and footer do not fit into the ``left`` bytes after its header."""
    if length > left:
        raise TruncatedRecordError(*place, f"cut off in its data: {length} bytes, of which there are {left}")
    if length + 4 > left:
        raise TruncatedRecordError(*place, f"cut off in its footer, after {left - length} of 4 bytes")


def verify(data: bytes, stored: bytes, what: str, place: Place) -> None:
    """Refuse data whose checksum is not the one that is stored with them."""
    expected = FOOTER.unpack(stored)[0]
    if (crc := masked_crc(data)) != expected:
        raise RecordChecksumError(
            *place, f"the checksum of its {what} is {crc:08x}, not {expected:08x} as stored: it is damaged"
        )


def require_plain(path: Path | str, head: bytes) -> None:
    """Refuse a file that is compressed."""
    if detect(head) is not None:
        raise RecordError(path, 0, 0, "the file is compressed: unpack it, or read it from first to last")


def detect(head: bytes) -> int | None:
    """The zlib window bits for a file that begins so, None for a plain one.

    A plain file may begin with the two bytes of either: what tells is the checksum of its first length.
    """
    if len(head) == 12 and masked_crc(head[:8]) == FOOTER.unpack(head[8:])[0]:
        return None
    if head[:2] == b"\x1f\x8b":  # RFC 1952, section 2.3.1
        return WINDOW_BITS["gzip"]
    if head[:1] == b"\x78" and len(head) > 1 and int.from_bytes(head[:2], "big") % 31 == 0:  # RFC 1950, 2.2
        return WINDOW_BITS["zlib"]
    return None


def window_bits(compression: str | None) -> int | None:
    """What zlib takes for a compression; None for none.

    Raises:
        UsageError: there is no such compression.
    """
    if compression not in WINDOW_BITS:
        raise UsageError(
            f"no compression {compression!r} of record files: they are plain (None), gzip or zlib"
        )
    return WINDOW_BITS[compression]
