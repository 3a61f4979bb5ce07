"""TFRecord framing: each record stands between its length and checksums.

Specification: TensorFlow's ``core/lib/io/record_writer.h``. A record is a little-endian uint64 length, the
masked CRC-32C of those eight bytes, the data, and the masked CRC-32C of the data.
"""

from __future__ import annotations

import struct

import google_crc32c

_MASK_DELTA = 0xA282EAD8


def masked_crc(data: bytes) -> int:
    """CRC-32C, rotated and shifted so that data which contain their own checksum do not defeat it."""
    crc: int = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + _MASK_DELTA) & 0xFFFFFFFF


def frame(data: bytes) -> bytes:
    """One record with its framing."""
    length = struct.pack("<Q", len(data))
    return b"".join(
        (length, struct.pack("<I", masked_crc(length)), data, struct.pack("<I", masked_crc(data)))
    )
