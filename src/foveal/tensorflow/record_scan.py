"""The compiled scanner of record files: finds the records in a piece of memory and verifies their checksums.

CRC-32C (Castagnoli; RFC 3720, appendix B.4) by tables, 16 bytes at a time: M. Kounavis and F. Berry, "A
Systematic Approach to Building High Performance Software-Based CRC Generators", ISCC 2005.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, cast

import numba
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Integer = int | np.int64

Function = TypeVar("Function", bound="Callable[..., Any]")

_POLYNOMIAL = 0x82F63B78  # reflected
_MASK_DELTA = np.uint32(0xA282EAD8)
_ONES = np.uint32(0xFFFFFFFF)


def kernel(function: Function) -> Function:
    """Compile for speed, to run without the interpreter's lock.

    A kernel may not allocate: it does without Numba's runtime, which counts references to arrays at every
    call; that takes several times as long as all that these small functions do.
    """
    compiled = numba.njit(  # type: ignore[call-overload]  # its stubs lack _nrt
        nogil=True, cache=True, boundscheck=False, _nrt=False
    )
    return cast("Function", compiled(function))


def _tables() -> NDArray[np.uint32]:
    """Row ``k``: the checksum's change by a byte that ``k`` zeros follow."""
    tables = np.zeros((16, 256), np.uint32)
    tables[0] = np.arange(256)
    for _ in range(8):
        tables[0] = (tables[0] >> 1) ^ np.where(tables[0] & 1, _POLYNOMIAL, 0).astype(np.uint32)
    for k in range(1, 16):
        tables[k] = (tables[k - 1] >> 8) ^ tables[0][tables[k - 1] & 255]
    return tables


_TABLES = _tables()


@kernel
def _little_endian(content: NDArray[np.uint8], at: Integer, size: int) -> np.uint64:
    first = np.uint64(at)  # unsigned: an index that cannot be negative lets this become a single load
    value = np.uint64(content[first])
    for i in range(1, size):
        value |= np.uint64(content[first + np.uint64(i)]) << np.uint64(8 * i)
    return value


@kernel
def masked_crc(content: NDArray[np.uint8], start: Integer, stop: Integer) -> np.uint32:
    """The masked CRC-32C of ``content[start:stop]``, as ``records.masked_crc`` gives it."""
    crc = _ONES
    at = start
    while at + 16 <= stop:
        first, second = _little_endian(content, at, 8) ^ np.uint64(crc), _little_endian(content, at + 8, 8)
        crc = np.uint32(0)
        for k in range(8):
            crc ^= _TABLES[15 - k, (first >> np.uint64(8 * k)) & np.uint64(255)]
            crc ^= _TABLES[7 - k, (second >> np.uint64(8 * k)) & np.uint64(255)]
        at += 16
    while at < stop:
        crc = _TABLES[0, (crc ^ np.uint32(content[at])) & np.uint32(255)] ^ (crc >> np.uint32(8))
        at += 1
    crc ^= _ONES
    rotated = np.uint32(crc >> np.uint32(15)) | np.uint32(crc << np.uint32(17))
    return np.uint32(rotated + _MASK_DELTA)


@kernel
def scan(
    content: NDArray[np.uint8],
    longest: int,
    starts: NDArray[np.int64],
    stops: NDArray[np.int64],
    intact: NDArray[np.bool_],
) -> tuple[int, Integer]:
    """Find the records that follow each other from the first byte on.

    Args:
        content: uint8 ``[bytes]``.
        longest: data of more bytes are not verified, and not called intact.
        starts: set to where each record's data begin; its length limits how many are found.
        stops: set to where they end.
        intact: set to whether their checksum is right.

    Returns:
        How many records were found, and the byte that follows the last: the end, or a record that is cut off
        or has a damaged length.
    """
    count, at = 0, np.int64(0)
    while count < len(starts) and at + 16 <= len(content):
        if masked_crc(content, at, at + 8) != np.uint32(_little_endian(content, at + 8, 4)):
            break
        length = _little_endian(content, at, 8)
        if length > np.uint64(len(content) - at - 16):
            break
        start = at + 12
        stop = start + np.int64(length)
        starts[count], stops[count] = start, stop
        stored = np.uint32(_little_endian(content, stop, 4))
        intact[count] = stop - start <= longest and masked_crc(content, start, stop) == stored
        count, at = count + 1, stop + 4
    return count, at


@kernel
def all_intact(content: NDArray[np.uint8], starts: NDArray[np.int64], stops: NDArray[np.int64]) -> bool:
    """Whether there are records whose data begin and end here (int64 ``[N]``), with the right checksums.

    Twelve bytes before each beginning, and four after each end, are in the content.
    """
    for record in range(len(starts)):
        start, stop = starts[record], stops[record]
        if (
            _little_endian(content, start - 12, 8) != np.uint64(stop - start)
            or masked_crc(content, start - 12, start - 4) != np.uint32(_little_endian(content, start - 4, 4))
            or masked_crc(content, start, stop) != np.uint32(_little_endian(content, stop, 4))
        ):
            return False
    return True
