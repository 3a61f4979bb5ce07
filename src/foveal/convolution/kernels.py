"""Winograd's transforms of tiles of 6 x 6 pixels, and their transposes; the products between them are BLAS's.

A two-dimensional transform is a one-dimensional one down the columns and then along the rows. The
one-dimensional ones are written out: each reads all its operands once and has a channel, or a whole row of
pixels, as its inner loop, which becomes vector instructions because indices are unsigned and constants
float32.

Images are flat ``[N, H, W, C]``, their tiles flat ``[36, N * rows * columns, C]``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numba
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

_F1, _F2, _F4, _F5, _F8 = (np.float32(value) for value in (1, 2, 4, 5, 8))
_U = np.uintp


def _kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    return numba.njit(nogil=True, cache=True, boundscheck=False, fastmath={"contract"})(function)


@_kernel
def _input(out: Floats, o: int, across: int, source: Floats, s: int, step: int, length: int) -> None:
    """``B^T d``: six vectors of ``length``, ``step`` apart, to six that are ``across`` apart."""
    for c in range(_U(length)):
        i, j = _U(s) + c, _U(o) + c
        d0, d1, d2 = source[i], source[i + _U(step)], source[i + _U(2 * step)]
        d3, d4, d5 = source[i + _U(3 * step)], source[i + _U(4 * step)], source[i + _U(5 * step)]
        even, odd = d4 - _F4 * d2, d3 - _F4 * d1
        out[j] = _F4 * d0 - _F5 * d2 + d4
        out[j + _U(across)] = even + odd
        out[j + _U(2 * across)] = even - odd
        even, odd = d4 - d2, _F2 * (d3 - d1)
        out[j + _U(3 * across)] = even + odd
        out[j + _U(4 * across)] = even - odd
        out[j + _U(5 * across)] = _F4 * d1 - _F5 * d3 + d5


@_kernel
def _input_transposed(
    out: Floats, o: int, across: int, source: Floats, s: int, step: int, length: int
) -> None:
    """``B v``, added to what is there."""
    for c in range(_U(length)):
        i, j = _U(s) + c, _U(o) + c
        v0, v1, v2 = source[i], source[i + _U(step)], source[i + _U(2 * step)]
        v3, v4, v5 = source[i + _U(3 * step)], source[i + _U(4 * step)], source[i + _U(5 * step)]
        near, far, near_odd, far_odd = v1 + v2, v3 + v4, v1 - v2, _F2 * (v3 - v4)
        out[j] += _F4 * v0
        out[j + _U(across)] += _F4 * (v5 - near_odd) - far_odd
        out[j + _U(2 * across)] -= _F5 * v0 + _F4 * near + far
        out[j + _U(3 * across)] += near_odd + far_odd - _F5 * v5
        out[j + _U(4 * across)] += v0 + near + far
        out[j + _U(5 * across)] += v5


@_kernel
def _output(
    tile: int, out: Floats, o: int, across: int, source: Floats, s: int, step: int, length: int
) -> None:
    """``A^T m``: six vectors to ``tile`` of them, 4 or 2."""
    if tile == 4:
        for c in range(_U(length)):
            i, j = _U(s) + c, _U(o) + c
            m0, m1, m2 = source[i], source[i + _U(step)], source[i + _U(2 * step)]
            m3, m4, m5 = source[i + _U(3 * step)], source[i + _U(4 * step)], source[i + _U(5 * step)]
            near, far, near_odd, far_odd = m1 + m2, m3 + m4, m1 - m2, m3 - m4
            out[j] = m0 + near + far
            out[j + _U(across)] = near_odd + _F2 * far_odd
            out[j + _U(2 * across)] = near + _F4 * far
            out[j + _U(3 * across)] = near_odd + _F8 * far_odd + m5
    else:
        for c in range(_U(length)):
            i, j = _U(s) + c, _U(o) + c
            m0, m1, m2 = source[i], source[i + _U(step)], source[i + _U(2 * step)]
            m3, m4, m5 = source[i + _U(3 * step)], source[i + _U(4 * step)], source[i + _U(5 * step)]
            out[j] = m0 + (m1 + m2) + (m3 + m4)
            out[j + _U(across)] = (m1 - m2) + _F2 * (m3 - m4) + m5


@_kernel
def _output_transposed(
    tile: int, out: Floats, o: int, across: int, source: Floats, s: int, step: int, length: int
) -> None:
    """``A y``: ``tile`` vectors, 4 or 2, to six."""
    if tile == 4:
        for c in range(_U(length)):
            i, j = _U(s) + c, _U(o) + c
            y0, y1 = source[i], source[i + _U(step)]
            y2, y3 = source[i + _U(2 * step)], source[i + _U(3 * step)]
            out[j] = y0
            out[j + _U(across)] = (y0 + y2) + (y1 + y3)
            out[j + _U(2 * across)] = (y0 + y2) - (y1 + y3)
            even, odd = y0 + _F4 * y2, _F2 * (y1 + _F4 * y3)
            out[j + _U(3 * across)] = even + odd
            out[j + _U(4 * across)] = even - odd
            out[j + _U(5 * across)] = y3
    else:
        for c in range(_U(length)):
            i, j = _U(s) + c, _U(o) + c
            y0, y1 = source[i], source[i + _U(step)]
            out[j] = y0
            out[j + _U(across)] = y0 + y1
            out[j + _U(2 * across)] = y0 - y1
            out[j + _U(3 * across)] = y0 + _F2 * y1
            out[j + _U(4 * across)] = y0 - _F2 * y1
            out[j + _U(5 * across)] = y1


@_kernel
def _copy(out: Floats, o: int, source: Floats, s: int, length: int) -> None:
    for c in range(_U(length)):
        out[_U(o) + c] = source[_U(s) + c]


@_kernel
def input_tiles(
    images: Floats, count: int, height: int, width: int, channels: int, padding: int,
    tile: int, rows: int, columns: int, tiles: Floats,
) -> None:  # fmt: skip
    """``B^T d B`` of every tile of 6 x 6 that the results of ``tile`` x ``tile`` need."""
    padded_width = (columns - 1) * tile + 6
    line, across = padded_width * channels, count * rows * columns * channels
    padded = np.zeros(((rows - 1) * tile + 6) * line, np.float32)
    columns_done = np.empty(6 * line, np.float32)
    for n in range(count):
        for y in range(height):
            start = (y + padding) * line + padding * channels
            _copy(padded, start, images, (n * height + y) * width * channels, width * channels)
        for row in range(rows):
            _input(columns_done, 0, line, padded, row * tile * line, line, line)
            for column in range(columns):
                place = ((n * rows + row) * columns + column) * channels
                for i in range(6):
                    source = i * line + column * tile * channels
                    _input(tiles, 6 * i * across + place, across, columns_done, source, channels, channels)


@_kernel
def input_tiles_transposed(
    tiles: Floats, count: int, height: int, width: int, channels: int, padding: int,
    tile: int, rows: int, columns: int, images: Floats,
) -> None:  # fmt: skip
    """``B v B^T`` of every tile, summed where tiles overlap."""
    padded_width = (columns - 1) * tile + 6
    line, across = padded_width * channels, count * rows * columns * channels
    padded = np.empty(((rows - 1) * tile + 6) * line, np.float32)
    rows_done = np.empty(6 * line, np.float32)
    for n in range(count):
        padded[:] = _F1 * 0
        for row in range(rows):
            rows_done[:] = _F1 * 0
            for column in range(columns):
                place = ((n * rows + row) * columns + column) * channels
                for i in range(6):
                    out = i * line + column * tile * channels
                    _input_transposed(
                        rows_done, out, channels, tiles, 6 * i * across + place, across, channels
                    )
            _input_transposed(padded, row * tile * line, line, rows_done, 0, line, line)
        for y in range(height):
            start = (y + padding) * line + padding * channels
            _copy(images, (n * height + y) * width * channels, padded, start, width * channels)


@_kernel
def output_tiles(
    tiles: Floats, count: int, height: int, width: int, channels: int,
    tile: int, rows: int, columns: int, images: Floats,
) -> None:  # fmt: skip
    """``A^T m A`` of every tile, without what reaches over the edge."""
    line, used = columns * tile * channels, width * channels
    across = count * rows * columns * channels
    rows_done, spare = np.empty(6 * line, np.float32), np.empty(tile * used, np.float32)
    for n in range(count):
        for row in range(rows):
            for column in range(columns):
                place = ((n * rows + row) * columns + column) * channels
                for i in range(6):
                    out = i * line + column * tile * channels
                    _output(tile, rows_done, out, channels, tiles, 6 * i * across + place, across, channels)
            start, remaining = (n * height + row * tile) * used, height - row * tile
            if remaining >= tile:
                _output(tile, images, start, used, rows_done, 0, line, used)
            else:
                _output(tile, spare, 0, used, rows_done, 0, line, used)
                _copy(images, start, spare, 0, remaining * used)


@_kernel
def output_tiles_transposed(
    images: Floats, count: int, height: int, width: int, channels: int,
    tile: int, rows: int, columns: int, tiles: Floats,
) -> None:  # fmt: skip
    """``A y A^T`` of every tile; what lies over the edge is zero."""
    line, used = columns * tile * channels, width * channels
    across = count * rows * columns * channels
    columns_done, spare = np.zeros(6 * line, np.float32), np.zeros(tile * used, np.float32)
    for n in range(count):
        for row in range(rows):
            start, remaining = (n * height + row * tile) * used, height - row * tile
            if remaining >= tile:
                _output_transposed(tile, columns_done, 0, line, images, start, used, used)
            else:
                _copy(spare, 0, images, start, remaining * used)
                _output_transposed(tile, columns_done, 0, line, spare, 0, used, used)
            for column in range(columns):
                place = ((n * rows + row) * columns + column) * channels
                for i in range(6):
                    source = i * line + column * tile * channels
                    _output_transposed(
                        tile, tiles, 6 * i * across + place, across, columns_done, source, channels, channels
                    )
