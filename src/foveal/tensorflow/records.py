"""Reading TFRecord files: from first to last, one record or many at a time, or at random.

The format, and the errors, are in ``record_framing.py``; writing is in ``record_writer.py``.
"""

from __future__ import annotations

import functools
import io
import itertools
import os
import stat
import weakref
import zlib
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, Self

import numpy as np

from foveal.errors import DataError
from foveal.tensorflow.record_framing import (
    FOOTER,
    HEADER,
    WINDOW_BITS,
    RecordChecksumError,
    RecordError,
    RecordLimitError,
    TruncatedRecordError,
    UnpackingError,
    detect,
    frame,
    length_of,
    masked_crc,
    require,
    require_plain,
    verify,
    window_bits,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from foveal.tensorflow.record_framing import Place

__all__ = [
    "FileBlock",
    "Record",
    "RecordBlock",
    "RecordChecksumError",
    "RecordError",
    "RecordFile",
    "RecordLimitError",
    "TruncatedRecordError",
    "UnpackingError",
    "frame",
    "index_records",
    "masked_crc",
    "read_blocks",
    "read_records",
]

_CHUNK = 1 << 16  # bytes of a compressed file that are read at a time
_PIECE = 1 << 24  # bytes that are asked for at once where the length is only a claim
_BLOCK = 1 << 20  # bytes read at once where records are read in blocks
_SHORT = 1 << 10  # bytes of data up to which the compiled checksum beats a call of the library


class Record(NamedTuple):
    """A record, and where it stands: its number from 0, and the byte at which its header begins."""

    data: bytes
    number: int
    offset: int


@dataclass(frozen=True)
class RecordBlock:
    """Records in one piece of memory; iterating over it copies each one's data.

    Attributes:
        content: the records, and what stands between them.
        starts: int64 ``[N]``; where the data of each begin in the content.
        stops: int64 ``[N]``; where they end.
    """

    content: bytes
    starts: NDArray[np.int64]
    stops: NDArray[np.int64]

    @classmethod
    def of(cls, records: Sequence[bytes]) -> Self:
        """Some records, joined."""
        edges = np.cumsum([0, *map(len, records)], dtype=np.int64)
        return cls(b"".join(records), edges[:-1], edges[1:])

    def __len__(self) -> int:
        return len(self.starts)

    def __iter__(self) -> Iterator[bytes]:
        places = zip(self.starts.tolist(), self.stops.tolist(), strict=True)
        return (self.content[start:stop] for start, stop in places)


class FileBlock(NamedTuple):
    """Records that follow each other in a file.

    Attributes:
        records: their data.
        number: that of the first of them, from 0.
        offsets: int64 ``[N]``; the byte of the file at which the header of each begins.
        intact: bool ``[N]``; whether the data's checksum is right. That of the length always is.
    """

    records: RecordBlock
    number: int
    offsets: NDArray[np.int64]
    intact: NDArray[np.bool_]


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
        bits = detect(file.peek(12)[:12]) if compression == "auto" else window_bits(compression)
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


def read_blocks(
    path: Path | str, *, damaged: Literal["raise", "keep"] = "raise", name: str | None = None
) -> Iterator[FileBlock]:
    """The records of a plain file from first to last, many at a time; all checksums are verified.

    Args:
        path: the file; it is opened at the first block and closed after the last, or with the iterator.
        damaged: what becomes of records whose length is right and whose data are not: an error, or one of the
            block that is not called intact.
        name: what errors call the file; by default its path.

    Raises:
        RecordError: the file is compressed, cut off or damaged; the records before that have been given out.
        DataError: the file cannot be opened.
    """
    shown = name or path
    with _open(path) as file:
        size, read = _size(file) or 0, functools.partial(_pread, file.fileno())
        require_plain(shown, read(12, 0))
        number, offset, wanted = 0, 0, _BLOCK
        while offset < size:
            content = read(min(wanted, size - offset), offset)
            found, intact, end = _scan(content, _BLOCK // 16)
            if not found:  # damaged, or longer than what was read
                place = (shown, number, offset)
                length = length_of(content[:12], place)
                require(length, (size - offset if length + 16 > wanted else len(content)) - 12, place)
                wanted = length + 16
                continue
            offsets = offset + found.starts - 12
            good = len(found) if damaged == "keep" or intact.all() else int(intact.argmin())
            records = RecordBlock(content, found.starts[:good], found.stops[:good])
            if good:
                yield FileBlock(records, number, offsets[:good], intact[:good])
            if good < len(found):
                start, stop = int(found.starts[good]), int(found.stops[good])
                place = (shown, number + good, int(offsets[good]))
                verify(content[start:stop], content[stop : stop + 4], "data", place)
            number, offset, wanted = number + len(found), offset + end, _BLOCK


class RecordFile:
    """Random access to the records of a plain file; threads may share it.

    Small files are held in memory. Large ones are read with ``pread``, and not mapped: when a mapped file
    shrinks, the process dies.
    """

    def __init__(
        self,
        path: Path | str,
        index: NDArray[np.int64] | None = None,
        hold: int = 1 << 26,
        *,
        name: str | None = None,
    ) -> None:
        """Open the file, and index it where no index is given.

        Args:
            path: the file.
            index: what :func:`index_records` gave for it.
            hold: files of up to this many bytes are read into memory at once.
            name: what errors call the file; by default its path.

        Raises:
            RecordError: the file is compressed, cut off, or a length is damaged.
            DataError: the file cannot be opened, or is too short for the index.
        """
        self.path = Path(name or path)
        with _open(path) as file:
            size = _size(file) or 0
            self._content = file.read() if size <= hold else None
            self._descriptor = -1 if self._content is not None else os.dup(file.fileno())
        # not closed by a method of its own: it must also happen when the last reference is dropped
        self._close = weakref.finalize(self, _close, self._descriptor)
        self.index = _index(self.path, self._bytes, size) if index is None else np.asarray(index, np.int64)
        offsets, lengths = self.index.reshape(-1, 2).T
        if self.index.size and (self.index.min() < 0 or (offsets > size - 16 - lengths).any()):
            raise DataError(f"{self.path}: shorter than its index says: it changed since it was indexed")

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

    def read_block(self, indices: Sequence[int] | NDArray[np.int64]) -> RecordBlock:
        """Records in the order asked for; both checksums of each are verified.

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
        if (held := self._held(wanted)) is not None:
            return held
        places = self.index[wanted].tolist()
        content = b"".join([self._bytes(length + 16, offset) for offset, length in places])
        found, intact, _ = _scan(content, len(wanted))
        lengths = found.stops - found.starts
        if intact.all() and np.array_equal(lengths, self.index[wanted, 1]):
            return found
        return RecordBlock.of(  # which says what is wrong
            [self._record(number, *place) for number, place in zip(wanted.tolist(), places, strict=True)]
        )

    def read(self, indices: Sequence[int] | NDArray[np.int64]) -> list[bytes]:
        """As :meth:`read_block`, each record's data for itself."""
        return list(self.read_block(indices))

    def _held(self, wanted: NDArray[np.int64]) -> RecordBlock | None:
        """Records where they lie in memory; None where they do not, are long, or not all are intact."""
        offsets, lengths = self.index[wanted].T
        if self._content is None or lengths.max(initial=0) > _SHORT:
            return None
        try:
            from foveal.tensorflow.record_scan import all_intact
        except ImportError:  # there is no Numba
            return None
        starts = offsets + 12
        stops = starts + lengths
        if not all_intact(np.frombuffer(self._content, np.uint8), starts, stops):
            return None
        return RecordBlock(self._content, starts, stops)

    def _record(self, number: int, offset: int, length: int) -> bytes:
        framed, place = self._bytes(length + 16, offset), (self.path, number, offset)
        if length_of(framed[:12], place) != length:
            raise RecordError(*place, "is not the record that was indexed: the file changed since")
        require(length, len(framed) - 12, place)
        verify(framed[12:-4], framed[-4:], "data", place)
        return framed[12:-4]

    def _bytes(self, count: int, offset: int) -> bytes:
        if self._content is not None:
            return self._content[offset : offset + count]
        if self._descriptor < 0:
            raise ValueError(f"{self.path} is closed")
        return _pread(self._descriptor, count, offset)


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
        if self._pending and self._bits == WINDOW_BITS["zlib"]:
            raise zlib.error("something follows the end of the compressed stream")
        if self._pending:
            self._inflate = zlib.decompressobj(self._bits)
        return bool(self._pending)


def _next(stream: io.BufferedReader, place: Place, end: int | None, limit: int) -> bytes | None:
    """The data of the next record of a stream; None where the stream ends before it.

    ``end`` is the size of the stream, where that is known: nothing is read for a length beyond it.
    """
    header = stream.read(12)
    if not header:
        return None
    length = length_of(header, place)
    if end is not None:
        require(length, end - place[2] - 12, place)
    elif length > limit:
        raise RecordLimitError(*place, f"claims {length} bytes, more than the limit of {limit}")
    data = _read(stream, length)
    footer = stream.read(4)
    require(length, len(data) + len(footer), place)
    verify(data, footer, "data", place)
    return data


def _index(path: Path | str, read: Callable[[int, int], bytes], size: int) -> NDArray[np.int64]:
    """The table of :func:`index_records`; ``read`` takes a number of bytes and an offset."""
    require_plain(path, read(12, 0))
    rows, window, start, offset = array("q"), b"", 0, 0
    while offset < size:
        at = offset - start
        if at + 12 > len(window):  # a page costs what a header costs, and small records have several in it
            window, start, at = read(4096, offset), offset, 0
        place = (path, len(rows) // 2, offset)
        length = length_of(window[at : at + 12], place)
        require(length, size - offset - 12, place)
        rows.extend((offset, length))
        offset += length + 16
    return np.array(rows, np.int64).reshape(-1, 2)


def _scan(content: bytes, limit: int) -> tuple[RecordBlock, NDArray[np.bool_], int]:
    """The records, up to ``limit``, that follow each other from the first byte on.

    Also, which of them have intact data, and the byte after the last: the end, or a record that is cut off or
    has a damaged length.
    """
    limit = min(limit, len(content) // 16)
    starts, stops, intact = np.empty(limit, np.int64), np.empty(limit, np.int64), np.zeros(limit, np.bool_)
    scan, verified = _scanner()
    count, end = scan(np.frombuffer(content, np.uint8), verified, starts, stops, intact)
    starts, stops, intact = starts[:count], stops[:count], intact[:count]
    for record in np.flatnonzero(stops - starts > verified).tolist():
        start, stop = int(starts[record]), int(stops[record])
        intact[record] = masked_crc(content[start:stop]) == FOOTER.unpack_from(content, stop)[0]
    return RecordBlock(content, starts, stops), intact, int(end)


@functools.cache
def _scanner() -> tuple[Callable[..., tuple[int, int | np.int64]], int]:
    """What finds records, and how long the data may be that it verifies itself."""
    try:
        from foveal.tensorflow.record_scan import scan
    except ImportError:  # there is no Numba
        return _find, -1
    return scan, _SHORT


def _find(
    content: NDArray[np.uint8], _: int, starts: NDArray[np.int64], stops: NDArray[np.int64], *__: object
) -> tuple[int, int]:
    """As ``record_scan.scan``, without it; verifies no data."""
    count, at = 0, 0
    while count < len(starts) and at + 16 <= len(content):
        length, crc = HEADER.unpack(header := content[at : at + 12].tobytes())
        if masked_crc(header[:8]) != crc or length > len(content) - at - 16:
            break
        starts[count], stops[count] = at + 12, at + 12 + length
        count, at = count + 1, at + 16 + length
    return count, at


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
