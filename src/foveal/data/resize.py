"""Antialiased bilinear resizing: a kernel for one image, compiled by Numba once and kept on disk.

The filter is a triangle as wide as two of the larger pixels; at the edges it is cut off and normalised, as
Pillow and TensorFlow do. Pixels are summed in integers, so that every machine gives the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numba
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

# Red, green and blue are lanes of 21 bits in one integer: a multiplication weighs all three. A lane holds 255
# times the sum of the weights, and half of that sum for rounding.
_BITS = 13
_GREEN, _BLUE = np.uint64(21), np.uint64(42)
_HALF = 1 << _BITS >> 1
_HALVES = np.uint64(_HALF | _HALF << 21 | _HALF << 42)
_BYTE, _SHIFT = np.uint64(255), np.uint64(_BITS)
_TAPS = 4  # weights are padded to a multiple of so many


def _kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    return numba.njit(nogil=True, cache=True, boundscheck=False, error_model="numpy")(function)


@_kernel
def _weigh(
    begin: float, extent: float, size: int, count: int
) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """Of which pixels each of ``count`` is made: the first of them, and their weights, 2**13 in all."""
    scale = extent / count
    reach = max(scale, 1.0)
    least, most = int(begin), min(size, int(np.ceil(begin + extent)))
    first = np.empty(count, np.int64)
    longest = min(most - least, int(2 * reach) + 1)
    weights = np.zeros((count, (longest + _TAPS - 1) // _TAPS * _TAPS), np.uint64)
    for i in range(count):
        centre = begin + (i + 0.5) * scale
        start, stop = max(least, int(centre - reach + 0.5)), min(most, int(centre + reach + 0.5))
        total = 0.0
        for k in range(start, stop):
            total += max(0.0, 1.0 - abs(k + 0.5 - centre) / reach)
        first[i] = start
        part, done = 0.0, 0
        for k in range(start, stop):  # what rounding adds to one weight, the next has less
            part += max(0.0, 1.0 - abs(k + 0.5 - centre) / reach)
            upto = int(part / total * (1 << _BITS) + 0.5)
            weights[i, k - start] = upto - done
            done = upto
    return first, weights


@_kernel
def resize(
    source: NDArray[np.uint8],
    top: float,
    left: float,
    height: float,
    width: float,
    target: NDArray[np.uint8],
) -> None:
    """Resize a window of an image; what is outside of the window has no part in it.

    Args:
        source: ``[H, W * 4]``, red, green, blue and a byte of no meaning; or ``[H, W]``, grey.
        top: where the window begins, in rows.
        left: and in pixels of a row.
        height: its rows; these may be fractions.
        width: its columns.
        target: ``[h, w, 3]`` or ``[h, w, 1]``; is filled.
    """
    rows, columns, channels = target.shape
    stored = 1 if channels == 1 else 4
    across = source.shape[1] // stored
    first_row, row_weights = _weigh(top, height, len(source), rows)
    first_column, column_weights = _weigh(left, width, across, columns)
    base = int(left)
    span = min(across, int(np.ceil(left + width))) - base
    sums = np.empty(span * stored, np.int32)
    pixels = np.zeros(span + column_weights.shape[1], np.uint64)
    totals = np.empty(columns, np.uint64)
    part = source[:, base * stored : (base + span) * stored]
    first_column -= base
    for y in range(rows):
        _sum_rows(part, first_row[y], row_weights[y], sums)
        _pack(sums, stored, pixels[:span])
        _sum_columns(pixels, first_column, column_weights, totals)
        _unpack(totals, target[y])


@_kernel
def _sum_rows(
    source: NDArray[np.uint8], first: int, weights: NDArray[np.uint64], sums: NDArray[np.int32]
) -> None:
    sums[:] = _HALF
    for k in range(len(weights)):
        weight = np.int32(weights[k])
        if weight:
            line = source[first + k]
            for j in range(len(sums)):
                sums[j] += weight * np.int32(line[j])


@_kernel
def _pack(sums: NDArray[np.int32], stored: int, pixels: NDArray[np.uint64]) -> None:
    """Round, and give every colour its lane."""
    if stored == 1:
        for x in range(len(pixels)):
            pixels[x] = sums[x] >> _BITS
        return
    pairs = sums.view(np.uint64)
    for x in range(len(pixels)):
        red_green, blue = pairs[2 * x] >> _SHIFT, pairs[2 * x + 1] >> _SHIFT
        green = red_green >> np.uint64(32)
        pixels[x] = red_green & _BYTE | (green & _BYTE) << _GREEN | (blue & _BYTE) << _BLUE


@_kernel
def _sum_columns(
    pixels: NDArray[np.uint64],
    first: NDArray[np.int64],
    weights: NDArray[np.uint64],
    totals: NDArray[np.uint64],
) -> None:
    totals[:] = _HALVES
    for k in range(0, weights.shape[1], _TAPS):
        for x in range(len(totals)):
            share = weights[x, k : k + _TAPS]
            near = pixels[first[x] + k : first[x] + k + _TAPS]
            totals[x] += share[0] * near[0] + share[1] * near[1] + share[2] * near[2] + share[3] * near[3]


@_kernel
def _unpack(totals: NDArray[np.uint64], line: NDArray[np.uint8]) -> None:
    if line.shape[1] == 1:
        for x in range(len(totals)):
            line[x, 0] = totals[x] >> _SHIFT
        return
    for x in range(len(totals)):
        total = totals[x] >> _SHIFT
        line[x, 0], line[x, 1], line[x, 2] = total, total >> _GREEN, total >> _BLUE
