"""TFRecord files: each record stands between its length and checksums.

Specification: TensorFlow's ``core/lib/io/record_writer.h``. A record is a little-endian uint64 length, the
masked CRC-32C of those eight bytes, the data, and the masked CRC-32C of the data. The file may be compressed
as a whole, with gzip or zlib.

    RecordError (a DataError)    names the file, the record (from 0) and the byte at which that begins
    ├── TruncatedRecordError     the file ends inside the record
    ├── RecordChecksumError      its length or its data are not those that were written
    ├── RecordLimitError         it is longer than the caller allows
    └── UnpackingError           the compression around the records is damaged
"""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import os
import secrets
import stat
import struct
import weakref
import zlib
from array import array
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, Self

import google_crc32c
import numpy as np

from foveal.errors import DataError, UsageError
from foveal.files import sync_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

_MASK_DELTA = 0xA282EAD8
_HEADER = struct.Struct("<QI")
_FOOTER = struct.Struct("<I")
_WINDOW_BITS = {
    None: None,
    "gzip": 31,
    "zlib": 15,
}  # as zlib takes them: 16 more for gzip's header and trailer
_CHUNK = 1 << 16  # bytes of a compressed file that are read at a time
_PIECE = 1 << 24  # bytes that are asked for at once where the length is only a claim


class Record(NamedTuple):
    """A record, and where it stands: its number from 0, and the byte at which its header begins."""

    data: bytes
    number: int
    offset: int


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


class RecordChecksumError(RecordError):
    """The length or the data of the record are not those that were written."""


class RecordLimitError(RecordError):
    """A record of a compressed file claims to be longer than the caller allows."""


class UnpackingError(RecordError):
    """The gzip or zlib stream around the records is damaged or cut off."""


_Place = tuple[Path | str, int, int]  # the first three arguments of a RecordError


def masked_crc(data: bytes) -> int:
    """CRC-32C, rotated and shifted so that data which contain their own checksum do not defeat it."""
    crc: int = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + _MASK_DELTA) & 0xFFFFFFFF


def frame(data: bytes) -> bytes:
    """One record with its framing."""
    return b"".join((_header(len(data)), data, _FOOTER.pack(masked_crc(data))))


def read_records(
    path: Path | str,
    *,
    compression: Literal["gzip", "zlib", "auto"] | None = "auto",
    limit: int = 1 << 30,
) -> Iterator[Record]:
    """The records of a file from first to last; both checksums of each are verified before it is given out.

    Args:
        path: the file. It is opened at the first record and closed after the last, or with the iterator.
        compression: of the file as a whole; None for a plain one, ``"auto"`` to look at its first bytes.
        limit: bytes that a record of a compressed file may have. Those of a plain one are held to its size.

    Raises:
        RecordError: the file is cut off or damaged; the records before that have been given out.
        DataError: the file cannot be opened.
        OSError: the device failed.
    """
    with _open(path) as file:
        bits = _detect(file.peek(12)[:12]) if compression == "auto" else _window_bits(compression)
        stream, end = file, _size(file)
        if bits is not None:
            stream, end = io.BufferedReader(_Inflated(file, bits), _CHUNK), None
        offset = 0
        for number in itertools.count():
            place = (path, number, offset)
            try:
                data = _next(stream, place, end, limit)
            except (EOFError, zlib.error) as error:
                raise UnpackingError(*place, f"cannot be unpacked: {error}") from None
            if data is None:
                return
            yield Record(data, number, offset)
            offset += len(data) + 16


def index_records(path: Path | str) -> NDArray[np.int64]:
    """Where the records of a plain file are; reads their headers only, and verifies the lengths' checksums.

    Returns:
        int64 ``[N, 2]``: for each record the byte at which its header begins, and the length of its data.

    Raises:
        RecordError: the file is compressed, cut off, or a length is damaged.
        DataError: the file cannot be opened.
    """
    with _open(path) as file:
        descriptor = file.fileno()
        return _index(path, lambda count, offset: _pread(descriptor, count, offset), _size(file) or 0)


class RecordFile:
    """Random access to the records of a plain file; threads may share it.

    Small files are held in memory. Large ones are read with ``pread``, and not mapped: when a mapped file
    shrinks, the process dies.
    """

    def __init__(self, path: Path | str, index: NDArray[np.int64] | None = None, hold: int = 1 << 26) -> None:
        """Open the file, and index it where no index is given.

        Args:
            path: the file.
            index: what :func:`index_records` gave for it.
            hold: files of up to this many bytes are read into memory at once.

        Raises:
            RecordError: the file is compressed, cut off, or a length is damaged.
            DataError: the file cannot be opened, or is too short for the index.
        """
        self.path = Path(path)
        with _open(path) as file:
            size = _size(file) or 0
            self._content = file.read() if size <= hold else None
            self._descriptor = -1 if self._content is not None else os.dup(file.fileno())
        # not closed by a method of its own: it must also happen when the last reference is dropped
        self._close = weakref.finalize(self, _close, self._descriptor)
        self.index = _index(path, self._bytes, size) if index is None else np.asarray(index, np.int64)
        offsets, lengths = self.index.reshape(-1, 2).T
        if self.index.size and (self.index.min() < 0 or (offsets > size - 16 - lengths).any()):
            raise DataError(f"{path}: shorter than its index says: it changed since it was indexed")

    def __len__(self) -> int:
        return len(self.index)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; no thread may be reading."""
        self._close()
        self._content, self._descriptor = None, -1

    def read(self, indices: Sequence[int] | NDArray[np.int64]) -> list[bytes]:
        """The data of records, in the order asked for; both checksums of each are verified.

        Args:
            indices: int64 ``[B]``, each in [0, len).

        Raises:
            RecordError: a record is damaged, or not the one that was indexed.
            IndexError: there is no record of that number.
        """
        wanted = np.asarray(indices, np.int64)
        if wanted.size and (wanted.min() < 0 or wanted.max() >= len(self)):
            raise IndexError(
                f"{self.path} has the records 0 to {len(self) - 1}, not all of {wanted.tolist()}"
            )
        places = zip(wanted.tolist(), self.index[wanted].tolist(), strict=True)
        return [self._record(number, offset, length) for number, (offset, length) in places]

    def _record(self, number: int, offset: int, length: int) -> bytes:
        framed = self._bytes(length + 16, offset)
        data = framed[12:-4]
        if (
            len(data) == length
            and framed[:12] == _header(length)
            and framed[-4:] == _FOOTER.pack(masked_crc(data))
        ):
            return data
        place = (self.path, number, offset)  # something is wrong: what?
        if _length(framed[:12], place) == length:
            _require(length, len(framed) - 12, place)
            _verify(data, framed[-4:], "data", place)
        raise RecordError(*place, "is not the record that was indexed: the file changed since")

    def _bytes(self, count: int, offset: int) -> bytes:
        if self._content is not None:
            return self._content[offset : offset + count]
        if self._descriptor < 0:
            raise ValueError(f"{self.path} is closed")
        return _pread(self._descriptor, count, offset)


class RecordWriter:
    """Writes a file of records; nothing stands under its name until all of them are on the disk.

    A context manager: an exception inside the ``with`` leaves no file, and an older one as it was.
    """

    def __init__(self, path: Path | str, compression: Literal["gzip", "zlib"] | None = None) -> None:
        """Begin a temporary file beside ``path``; folders that do not exist are made."""
        bits = _window_bits(compression)
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._temporary = self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}.tmp")
        self._file = self._temporary.open("xb")
        self._pack = None if bits is None else zlib.compressobj(wbits=bits)
        self.discard = weakref.finalize(self, _discard, self._file, self._temporary)
        """Give up: close and delete the temporary file. Happens by itself when nobody holds the writer."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()

    def write(self, data: bytes) -> None:
        """Add a record.

        Raises:
            ValueError: the writer is closed, or an earlier write failed.
            OSError: the disk is full, for example; the file is given up.
        """
        self._put(frame(data), final=False)

    def close(self) -> None:
        """Force everything to the disk and give the file its name; does nothing the second time.

        Raises:
            OSError: that failed; nothing was changed under the file's name.
        """
        if not self.discard.alive:
            return
        self._put(b"", final=True)
        self.discard.detach()
        sync_folder(self.path.parent)

    def _put(self, content: bytes, *, final: bool) -> None:
        if not self.discard.alive:
            raise ValueError(f"{self.path}: the writer is closed, or failed before")
        try:
            if self._pack is not None:
                content = self._pack.compress(content) + (self._pack.flush() if final else b"")
            self._file.write(content)
            if final:
                self._file.flush()
                os.fsync(self._file.fileno())
                self._file.close()
                self._temporary.replace(self.path)
        except BaseException:
            self.discard()
            raise


class _Inflated(io.RawIOBase):
    """What a compressed file unpacks to; gzip members that follow each other are one stream, as for gzip."""

    def __init__(self, file: io.BufferedReader, bits: int) -> None:
        self._file, self._bits = file, bits
        self._inflate, self._pending = zlib.decompressobj(bits), b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # io says Buffer; it gives this
        while not self._inflate.eof or self._more():
            self._pending = self._pending or self._file.read(_CHUNK)
            ended = not self._pending
            piece = self._inflate.decompress(self._pending, len(buffer))
            self._pending = self._inflate.unconsumed_tail
            if piece:
                buffer[: len(piece)] = piece
                return len(piece)
            if ended and not self._inflate.eof:
                raise EOFError("the compressed file is cut off")
        return 0

    def _more(self) -> bool:
        """Whether anything follows the end of a stream; another gzip member may, and nothing else."""
        self._pending = self._inflate.unused_data or self._file.read(_CHUNK)
        if self._pending and self._bits == _WINDOW_BITS["zlib"]:
            raise zlib.error("something follows the end of the compressed stream")
        if self._pending:
            self._inflate = zlib.decompressobj(self._bits)
        return bool(self._pending)


def _next(stream: io.BufferedReader, place: _Place, end: int | None, limit: int) -> bytes | None:
    """The data of the next record of a stream; None where the stream ends before it.

    ``end`` is the size of the stream, where that is known: nothing is read for a length beyond it.
    """
    header = stream.read(12)
    if not header:
        return None
    length = _length(header, place)
    if end is not None:
        _require(length, end - place[2] - 12, place)
    elif length > limit:
        raise RecordLimitError(*place, f"claims {length} bytes, more than the limit of {limit}")
    data = _read(stream, length)
    footer = stream.read(4)
    _require(length, len(data) + len(footer), place)
    _verify(data, footer, "data", place)
    return data


def _index(path: Path | str, read: Callable[[int, int], bytes], size: int) -> NDArray[np.int64]:
    """The table of :func:`index_records`; ``read`` takes a number of bytes and an offset."""
    if _detect(read(12, 0)) is not None:
        raise RecordError(path, 0, 0, "the file is compressed: unpack it, or read it from first to last")
    rows, window, start, offset = array("q"), b"", 0, 0
    while offset < size:
        at = offset - start
        if at + 12 > len(window):  # a page costs what a header costs, and small records have several in it
            window, start, at = read(4096, offset), offset, 0
        place = (path, len(rows) // 2, offset)
        length = _length(window[at : at + 12], place)
        _require(length, size - offset - 12, place)
        rows.extend((offset, length))
        offset += length + 16
    return np.array(rows, np.int64).reshape(-1, 2)


@functools.lru_cache(4096)
def _header(length: int) -> bytes:
    packed = struct.pack("<Q", length)
    return packed + _FOOTER.pack(masked_crc(packed))


def _length(header: bytes, place: _Place) -> int:
    if len(header) < 12:
        raise TruncatedRecordError(*place, f"cut off in its header, after {len(header)} of 12 bytes")
    length: int = _HEADER.unpack(header)[0]
    _verify(header[:8], header[8:], "length", place)
    return length


def _require(length: int, left: int, place: _Place) -> None:
    """Refuse a record whose data and footer do not fit into the ``left`` bytes after its header."""
    if length > left:
        raise TruncatedRecordError(*place, f"cut off in its data: {length} bytes, of which there are {left}")
    if length + 4 > left:
        raise TruncatedRecordError(*place, f"cut off in its footer, after {left - length} of 4 bytes")


def _verify(data: bytes, stored: bytes, what: str, place: _Place) -> None:
    expected = _FOOTER.unpack(stored)[0]
    if (crc := masked_crc(data)) != expected:
        raise RecordChecksumError(
            *place, f"the checksum of its {what} is {crc:08x}, not {expected:08x} as stored: it is damaged"
        )


def _detect(head: bytes) -> int | None:
    """The zlib window bits for a file that begins so, None for a plain one.

    A plain file may begin with the two bytes of either: what tells is the checksum of its first length.
    """
    if len(head) == 12 and masked_crc(head[:8]) == _FOOTER.unpack(head[8:])[0]:
        return None
    if head[:2] == b"\x1f\x8b":  # RFC 1952, section 2.3.1
        return _WINDOW_BITS["gzip"]
    if head[:1] == b"\x78" and len(head) > 1 and int.from_bytes(head[:2], "big") % 31 == 0:  # RFC 1950, 2.2
        return _WINDOW_BITS["zlib"]
    return None


def _window_bits(compression: str | None) -> int | None:
    if compression not in _WINDOW_BITS:
        raise UsageError(
            f"no compression {compression!r} of record files: they are plain (None), gzip or zlib"
        )
    return _WINDOW_BITS[compression]


def _open(path: Path | str) -> io.BufferedReader:
    try:
        return Path(path).open("rb")
    except OSError as error:
        raise DataError(f"{path}: cannot be opened: {error.strerror}") from None


def _size(file: io.BufferedReader) -> int | None:
    """The size of a file, None of a pipe."""
    status = os.fstat(file.fileno())
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _read(stream: io.BufferedReader, count: int) -> bytes:
    """Up to ``count`` bytes, without memory for more than there are: ``read`` takes that beforehand."""
    if count <= _PIECE:
        return stream.read(count)
    pieces = []
    while count and (piece := stream.read(min(count, _PIECE))):
        pieces.append(piece)
        count -= len(piece)
    return b"".join(pieces)


def _pread(descriptor: int, count: int, offset: int) -> bytes:
    """As ``os.pread``, also beyond the 2 GiB that one call gives; shorter only at the end of the file."""
    data = os.pread(descriptor, count, offset)
    while len(data) < count and (more := os.pread(descriptor, count - len(data), offset + len(data))):
        data += more
    return data


def _close(descriptor: int) -> None:
    if descriptor >= 0:
        os.close(descriptor)


def _discard(file: io.BufferedWriter, temporary: Path) -> None:
    with contextlib.suppress(OSError):  # what it still had to write may not fit on the disk; it is not wanted
        file.close()
    temporary.unlink(missing_ok=True)
