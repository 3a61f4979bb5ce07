"""CRC-32C of buffers, without copying them, and of two pieces put together, without reading them again."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import google_crc32c

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# The C extension takes any read-only buffer and, oddly, NumPy's arrays; its substitute in Python only bytes.
_NEEDS_BYTES = google_crc32c.implementation != "c"


def crc32c(content: bytes | NDArray[np.uint8], crc: int = 0) -> int:
    """Extend ``crc``, the CRC-32C (Castagnoli, RFC 3720) of what came before, by ``content``."""
    if _NEEDS_BYTES:
        content = bytes(content)
    return int(google_crc32c.extend(crc, content))


def joined_crc(first: int, second: int, second_length: int) -> int:
    """Compute the CRC of two pieces from the CRC of each, so that no byte is checksummed twice.

    A CRC is a polynomial over GF(2): the first, shifted by the length of the second, plus the second.
    """
    return _product(_shift(second_length), first) ^ second


@lru_cache(maxsize=4096)
def _shift(nbytes: int) -> int:
    """Compute x^(8 * nbytes) modulo the polynomial of CRC-32C, by squaring."""
    result, square = 1 << 31, 1 << 23  # x^0 and x^8: the highest bit is the lowest power
    while nbytes:
        if nbytes & 1:
            result = _product(square, result)
        square = _product(square, square)
        nbytes >>= 1
    return result


def _product(first: int, second: int) -> int:
    """Multiply two polynomials modulo that of CRC-32C, bits reversed."""
    result = 0
    while first:
        if first & 0x80000000:
            result ^= second
        first = first << 1 & 0xFFFFFFFF
        second = second >> 1 ^ (0x82F63B78 if second & 1 else 0)
    return result
