"""Writing table files as TensorFlow writes the index of a V2 checkpoint: equal entries give equal bytes.

Specification: TensorFlow's ``core/lib/io/table_builder.cc`` and ``block_builder.cc``, without compression;
reading is in ``table.py``.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from foveal.checkpoints.checksum import crc32c
from foveal.files import write_atomically
from foveal.tensorflow.record_framing import masked
from foveal.tensorflow.table import MAGIC, PLAIN, TRAILER

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_BLOCK = 1 << 18  # bytes: a block ends with the entry that fills it
_INTERVAL = 16  # entries from one whole key to the next; in the index of the table every key is whole


def write_table(path: Path, items: Iterable[tuple[bytes, bytes]]) -> None:
    """Replace a file by a table of some entries; a crash leaves the old file or the new.

    Args:
        path: the file.
        items: keys and values, in the order of the keys, which must differ.

    Raises:
        ValueError: the keys are not in order; nothing was changed.
        OSError: the file cannot be written; nothing was changed.
    """
    output, index, block = bytearray(), _Block(1), _Block(_INTERVAL)
    full: tuple[bytes, bytes] | None = None  # the last key and the place of the block before this one
    last: bytes | None = None
    for key, value in items:
        if last is not None and key <= last:
            raise ValueError(f"the key {key!r} does not come after {last!r}")
        if full is not None:
            index.add(_between(full[0], key), full[1])
            full = None
        block.add(key, value)
        last = key
        if block.size >= _BLOCK:
            full, block = (key, _append(output, block)), _Block(_INTERVAL)
    if block.size > _EMPTY:
        full = last or b"", _append(output, block)
    metaindex = _append(output, _Block(_INTERVAL))
    if full is not None:
        index.add(_after(full[0]), full[1])
    handles = metaindex + _append(output, index)
    write_atomically(path, bytes(output) + handles.ljust(40, b"\0") + struct.pack("<Q", MAGIC))


class _Block:
    """The entries of a block: of each key what it shares with the one before is left out."""

    def __init__(self, interval: int) -> None:
        self._interval = interval
        self._content = bytearray()
        self._restarts = [0]
        self._since = 0  # entries since the last restart
        self._last = b""

    @property
    def size(self) -> int:
        """Bytes of the whole block."""
        return len(self._content) + 4 * len(self._restarts) + 4

    def add(self, key: bytes, value: bytes) -> None:
        if self._since == self._interval:
            self._restarts.append(len(self._content))
            self._since = 0
        shared = _shared(self._last, key) if self._since else 0
        lengths = encode_varint(shared) + encode_varint(len(key) - shared) + encode_varint(len(value))
        self._content += lengths + key[shared:] + value
        self._since += 1
        self._last = key

    def content(self) -> bytes:
        count = len(self._restarts)
        return bytes(self._content) + struct.pack(f"<{count + 1}I", *self._restarts, count)


_EMPTY = _Block(1).size


def encode_varint(number: int) -> bytes:
    """Encode an unsigned integer: 7 bits to a byte, the lowest first, the top bit set in all but the last."""
    encoded = bytearray()
    while number > 127:
        encoded.append(number & 127 | 128)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def _append(output: bytearray, block: _Block) -> bytes:
    """Append a block with its trailer; returns its place as a handle says it."""
    offset, content = len(output), block.content()
    crc = masked(crc32c(content + bytes([PLAIN])))
    output += content + TRAILER.pack(PLAIN, crc)
    return encode_varint(offset) + encode_varint(len(content))


def _shared(first: bytes, second: bytes) -> int:
    """How many bytes two keys begin with in common."""
    size = min(len(first), len(second))
    return next((at for at in range(size) if first[at] != second[at]), size)


def _between(first: bytes, second: bytes) -> bytes:
    """A short key from ``first`` on and below ``second``."""
    at = _shared(first, second)
    if at < min(len(first), len(second)) and first[at] + 1 < second[at]:
        return first[:at] + bytes([first[at] + 1])
    return first


def _after(key: bytes) -> bytes:
    """A short key from ``key`` on."""
    at = next((at for at, byte in enumerate(key) if byte < 255), len(key))
    return key[:at] + bytes([key[at] + 1]) if at < len(key) else key
