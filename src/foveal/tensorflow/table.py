"""Table files, in which TensorFlow keeps the index of a V2 checkpoint and the whole of a V1 one.

Specification: TensorFlow's ``core/lib/io/table_builder.cc``, ``block_builder.cc`` and ``format.cc``; they are
LevelDB's tables (its ``doc/table_format.md``). Writing is in ``table_writer.py``; ``docs/formats.md`` has the
bytes.
"""

from __future__ import annotations

import os
import struct
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from foveal.checkpoints.checksum import crc32c
from foveal.checkpoints.untrusted import open_for_reading
from foveal.errors import CheckpointError, DamagedCheckpointError
from foveal.tensorflow.record_framing import masked

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from io import FileIO
    from typing import NoReturn

__all__ = ["MAGIC", "PLAIN", "SNAPPY", "TRAILER", "Table", "TableEntry", "damaged", "is_table", "varint"]

MAGIC = 0xDB4775248B80FB57
_FOOTER = 48  # bytes: two handles, filled up with zeros to 40, and the magic number
TRAILER = struct.Struct("<BI")  # after a block: how it is packed, masked CRC-32C of it and of that byte
PLAIN, SNAPPY = 0, 1

_LIMIT = 64  # key bytes that a byte of a block may unpack to; a restart every 16 keys allows 16


class TableEntry(NamedTuple):
    """A key with its value, and the byte of the file at which it (or the packed block that has it) begins."""

    key: bytes
    value: bytes
    offset: int


_new_entry = partial(tuple.__new__, TableEntry)  # what TableEntry() calls: a table may have very many


class _Block(NamedTuple):
    """A block as it is without packing, and where its bytes are."""

    content: bytes
    offset: int
    packed: bool

    def place(self, at: int) -> int:
        """The byte of the file that stands for byte ``at`` of the content."""
        return self.offset if self.packed else self.offset + at


class Table:
    """A table file: keys, all different and in order, with their values.

    To make one verifies the footer and the index; to iterate over it reads block after block, verifies each,
    and gives ``(key, value)``. It holds no open file between.

    Attributes:
        path: the file.
    """

    def __init__(self, path: Path | str) -> None:
        """Read the index.

        Raises:
            DamagedCheckpointError: the file is no table, cut off or damaged; says where.
            CheckpointError: it cannot be opened, or Snappy is needed and not installed.
        """
        self.path = Path(path)
        with open_for_reading(self.path) as file:
            size = os.fstat(file.fileno()).st_size
            metaindex, index = self._footer(file, size)
            for _ in _entries(self.path, _read_block(file, self.path, *metaindex)):
                pass  # holds nothing that is needed, but it is checked as all else
            self._handles = list(self._data_blocks(_read_block(file, self.path, *index), index[0]))

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        return ((key, value) for key, value, _ in self.entries())

    def entries(self) -> Generator[TableEntry, None, None]:
        """The keys and values with their places, in the order of the keys.

        Raises:
            DamagedCheckpointError: a block is damaged; the entries before it have been given out.
            CheckpointError: the file cannot be opened, or Snappy is needed and not installed.
        """
        last: bytes | None = None
        with open_for_reading(self.path) as file:
            for offset, size in self._handles:
                for entry in _entries(self.path, _read_block(file, self.path, offset, size)):
                    key = entry.key
                    if last is not None and key <= last:
                        damaged(self.path, entry.offset, f"the key {key!r:.200} is not in order")
                    last = key
                    yield entry

    def _footer(self, file: FileIO, size: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Where the metaindex and the index are: the offset and the size of each."""
        start = size - _FOOTER
        if start < 0:
            damaged(self.path, size, f"too short for a table file and its footer of {_FOOTER} bytes")
        footer = _read_bytes(file, self.path, start, _FOOTER)
        magic = int.from_bytes(footer[40:], "little")
        if magic != MAGIC:
            damaged(self.path, start + 40, f"{magic:016x}, not the {MAGIC:016x} that ends a table file")
        metaindex, at = self._handle(footer[:40], 0, start, start)
        index, at = self._handle(footer[:40], at, start, start)
        if any(footer[at:40]):
            damaged(self.path, start + at, "the footer is not filled up with zeros")
        return metaindex, index

    def _data_blocks(self, index: _Block, end: int) -> Iterator[tuple[int, int]]:
        """The offset and the size of each block that the index lists; all lie before ``end``."""
        free = 0
        for _, value, place in _entries(self.path, index):
            (offset, size), used = self._handle(value, 0, end, place)
            if used != len(value):
                damaged(self.path, place, "more than the place of a block stands in the index")
            if offset < free:
                damaged(self.path, place, f"the block at byte {offset} overlaps another")
            free = offset + size + TRAILER.size
            yield offset, size

    def _handle(self, content: bytes, at: int, end: int, place: int) -> tuple[tuple[int, int], int]:
        """The handle at ``at`` of some bytes: offset and size of a block, and where the handle ends."""
        try:
            offset, at = varint(content, at)
            size, at = varint(content, at)
        except ValueError as error:
            damaged(self.path, place, f"the place of a block is {error}")
        if offset + size + TRAILER.size > end:
            damaged(self.path, place, f"a block of {size} bytes at byte {offset} reaches beyond byte {end}")
        return (offset, size), at


def is_table(path: Path) -> bool:
    """Whether a file ends as a table does."""
    with open_for_reading(path) as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - 8))
        return file.read(8) == MAGIC.to_bytes(8, "little")


def damaged(path: Path, offset: int, problem: str) -> NoReturn:
    """Raise the error that says what is wrong at ``offset`` of the file ``path``."""
    raise DamagedCheckpointError(f"{path}: byte {offset}: {problem}: the file is damaged, use another copy")


def varint(content: bytes, at: int, bits: int = 64) -> tuple[int, int]:
    """Decode an unsigned integer: 7 bits to a byte, the lowest first, the top bit set in all but the last.

    Returns:
        The integer, and the position after it.

    Raises:
        ValueError: it is cut off, or has more than ``bits`` bits.
    """
    value = 0
    for shift in range(0, bits, 7):
        if at == len(content):
            raise ValueError("cut off")
        byte = content[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            if value >> bits:
                break
            return value, at
    raise ValueError(f"an integer of more than {bits} bits")


def _read_bytes(file: FileIO, path: Path, offset: int, size: int) -> bytes:
    """Read ``size`` bytes, which the file is known to have."""
    file.seek(offset)
    pieces: list[bytes] = []
    while size:  # a call gives at most 2 GiB
        piece = file.read(size)
        if not piece:
            damaged(path, offset + sum(map(len, pieces)), "the file ended while it was read")
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


def _read_block(file: FileIO, path: Path, offset: int, size: int) -> _Block:
    """Read, verify and unpack a block whose place has been checked."""
    raw = _read_bytes(file, path, offset, size + TRAILER.size)
    content, (kind, stored) = raw[:size], TRAILER.unpack_from(raw, size)
    if (crc := masked(crc32c(raw[size : size + 1], crc32c(content)))) != stored:
        damaged(path, offset, f"the checksum of a block is {crc:08x}, not {stored:08x} as stored")
    if kind not in (PLAIN, SNAPPY):
        damaged(path, offset + size, f"a block is packed in an unknown way, number {kind}")
    if kind == SNAPPY:
        content = _unpack(path, offset, content)
    return _Block(content, offset, kind == SNAPPY)


def _unpack(path: Path, offset: int, packed: bytes) -> bytes:
    """Undo Snappy (its ``format_description.txt``)."""
    try:
        import cramjam
    except ImportError:
        raise CheckpointError(
            f"{path}: byte {offset}: a block is packed with Snappy: pip install cramjam to read it"
        ) from None
    try:
        size, _ = varint(packed, 0, 32)
    except ValueError as error:
        damaged(path, offset, f"the size of a block in Snappy is {error}")
    if 3 * size > 64 * len(packed):  # an element of 3 bytes gives 64 at most, and none gives more for a byte
        damaged(path, offset, f"{len(packed)} bytes in Snappy cannot give the {size} that they claim")
    try:
        return bytes(cramjam.snappy.decompress_raw(packed))
    except cramjam.DecompressionError as error:
        damaged(path, offset, f"a block in Snappy cannot be unpacked: {error}")


def _entries(path: Path, block: _Block) -> Iterator[TableEntry]:
    """Decode a block: each key as what it shares with the one before, and the rest."""
    content, end, restarts = _restarts(path, block)
    first, step = block.place(0), block.place(1) - block.place(0)
    limit = _LIMIT * len(content)
    whole = {0}  # where keys stand that share nothing
    key, size, keys, at = b"", 0, 0, 0
    while at < end:
        start = at
        shared, own, length = content[at : at + 3]  # there are four bytes more after the last entry
        if (shared | own | length) < 128:  # each is a varint of one byte, as most are
            at += 3
        else:
            shared, own, length, at = _lengths(path, block, start)
        stop = at + own + length
        if shared > size or stop > end:
            damaged(path, block.place(start), "the lengths of an entry reach beyond its block, or its key")
        if not shared:
            whole.add(start)
        size = shared + own
        keys += size
        if keys > limit:
            damaged(path, block.place(start), f"a block of {len(content)} bytes has more than {keys} of keys")
        key = key[:shared] + content[at : at + own]
        yield _new_entry((key, content[at + own : stop], first + step * start))
        at = stop
    if not whole.issuperset(restarts):
        damaged(path, block.place(end), "a restart of a block is not where a whole key stands")


def _restarts(path: Path, block: _Block) -> tuple[bytes, int, tuple[int, ...]]:
    """The content of a block, where its entries end, and the restarts, which stand there."""
    content = block.content
    count = int.from_bytes(content[-4:], "little")
    end = len(content) - 4 - 4 * count
    if len(content) < 4 or end < 0 or (end and not count):
        damaged(path, block.place(0), f"a block of {len(content)} bytes cannot have {count} restarts")
    return content, end, struct.unpack_from(f"<{count}I", content, end)


def _lengths(path: Path, block: _Block, start: int) -> tuple[int, int, int, int]:
    """Three varints: bytes shared, bytes of the key, bytes of the value; and the position after them."""
    at, lengths = start, []
    try:
        for _ in range(3):
            length, at = varint(block.content, at, 32)
            lengths.append(length)
    except ValueError as error:
        damaged(path, block.place(start), f"a length of an entry is {error}")
    return lengths[0], lengths[1], lengths[2], at
