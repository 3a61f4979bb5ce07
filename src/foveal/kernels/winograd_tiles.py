"""Winograd's transforms of tiles of 6 x 6 or 8 x 8 pixels, and their transposes; the products are BLAS's.

A tile gives 4 x 4 results: of filters of 3 x 3 with a side of 6, of 5 x 5 with 8. The polynomials are taken
at 0, 1, -1, 2, -2 and infinity, with a side of 8 also at 1/2 and -1/2.

A two-dimensional transform is a one-dimensional one down the columns and then along the rows. The
one-dimensional ones are written out: each reads all its operands once and has a channel, or a whole row of
pixels, as its inner loop, which becomes vector instructions because indices are unsigned and constants
float32.

Images are flat ``[N, H, W, C]``, float32 or bfloat16; their tiles are float32, flat
``[side * side, N * rows * columns, C]``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from foveal.kernels.compiled import clamp, kernel, narrow, wide

if TYPE_CHECKING:
    from foveal.kernels.compiled import Floats, Values

    Index = int | np.uintp

_F2, _F4, _F5, _F8 = (np.float32(value) for value in (2, 4, 5, 8))
_F1_2, _F1_4, _F1_8, _F5_2 = (np.float32(value) for value in (0.5, 0.25, 0.125, 2.5))
_F5_4, _F17_4, _F21_4 = (np.float32(value) for value in (1.25, 4.25, 5.25))
TILE = 4  # side of the results that a tile gives
_U = np.uintp


@kernel
def _input(
    side: int, out: Floats, o: int, across: Index, source: Floats, s: int, step: Index, length: int
) -> None:
    """``B^T d``: ``side`` vectors of ``length``, ``step`` apart, to as many that are ``across`` apart."""
    step, across = _U(step), _U(across)
    if side == 6:
        for c in range(_U(length)):
            i, j = _U(s) + c, _U(o) + c
            d0, d1, d2 = source[i], source[i + step], source[i + _U(2) * step]
            d3, d4, d5 = source[i + _U(3) * step], source[i + _U(4) * step], source[i + _U(5) * step]
            even, odd = d4 - _F4 * d2, d3 - _F4 * d1
            out[j] = _F4 * d0 - _F5 * d2 + d4
            out[j + across] = even + odd
            out[j + _U(2) * across] = even - odd
            even, odd = d4 - d2, _F2 * (d3 - d1)
            out[j + _U(3) * across] = even + odd
            out[j + _U(4) * across] = even - odd
            out[j + _U(5) * across] = _F4 * d1 - _F5 * d3 + d5
    else:
        for c in range(_U(length)):
            i, j = _U(s) + c, _U(o) + c
            d0, d1, d2 = source[i], source[i + step], source[i + _U(2) * step]
            d3, d4, d5 = source[i + _U(3) * step], source[i + _U(4) * step], source[i + _U(5) * step]
            d6, d7 = source[i + _U(6) * step], source[i + _U(7) * step]
            out[j] = _F21_4 * (d2 - d4) + (d6 - d0)
            even, odd = (d2 + d6) - _F17_4 * d4, (d1 + d5) - _F17_4 * d3
            out[j + across] = even + odd
            out[j + _U(2) * across] = even - odd
            even, odd = _F1_4 * d2 - _F5_4 * d4 + d6, _F1_2 * d1 - _F5_2 * d3 + _F2 * d5
            out[j + _U(3) * across] = even + odd
            out[j + _U(4) * across] = even - odd
            even, odd = _F4 * d2 - _F5 * d4 + d6, _F2 * d1 - _F5_2 * d3 + _F1_2 * d5
            out[j + _U(5) * across] = even + odd
            out[j + _U(6) * across] = even - odd
            out[j + _U(7) * across] = _F21_4 * (d3 - d5) + (d7 - d1)


@kernel
def _input_transposed(
    side: int, out: Floats, o: int, across: Index, source: Floats, s: int, step: Index, length: int
) -> None:
    """``B v``, added to what is there."""
    step, across = _U(step), _U(across)
    if side == 6:
        for c in range(_U(length)):
            i, j = _U(s) + c, _U(o) + c
            v0, v1, v2 = source[i], source[i + step], source[i + _U(2) * step]
            v3, v4, v5 = source[i + _U(3) * step], source[i + _U(4) * step], source[i + _U(5) * step]
            even_1, even_2, odd_1, odd_2 = v1 + v2, v3 + v4, v1 - v2, _F2 * (v3 - v4)
            out[j] += _F4 * v0
            out[j + across] += _F4 * (v5 - odd_1) - odd_2
            out[j + _U(2) * across] -= _F5 * v0 + _F4 * even_1 + even_2
            out[j + _U(3) * across] += odd_1 + odd_2 - _F5 * v5
            out[j + _U(4) * across] += v0 + even_1 + even_2
            out[j + _U(5) * across] += v5
    else:
        for c in range(_U(length)):
            i, j = _U(s) + c, _U(o) + c
            v0, v1, v2 = source[i], source[i + step], source[i + _U(2) * step]
            v3, v4, v5 = source[i + _U(3) * step], source[i + _U(4) * step], source[i + _U(5) * step]
            v6, v7 = source[i + _U(6) * step], source[i + _U(7) * step]
            even_1, even_2, even_3 = v1 + v2, v3 + v4, v5 + v6
            odd_1, odd_2, odd_3 = v1 - v2, v3 - v4, v5 - v6
            out[j] -= v0
            out[j + across] += odd_1 + _F1_2 * odd_2 + _F2 * odd_3 - v7
            out[j + _U(2) * across] += _F21_4 * v0 + even_1 + _F1_4 * even_2 + _F4 * even_3
            out[j + _U(3) * across] += _F21_4 * v7 - _F17_4 * odd_1 - _F5_2 * (odd_2 + odd_3)
            out[j + _U(4) * across] -= _F21_4 * v0 + _F17_4 * even_1 + _F5_4 * even_2 + _F5 * even_3
            out[j + _U(5) * across] += odd_1 + _F2 * odd_2 + _F1_2 * odd_3 - _F21_4 * v7
            out[j + _U(6) * across] += v0 + even_1 + even_2 + even_3
            out[j + _U(7) * across] += v7


@kernel
def _output(
    side: int, out: Floats, o: int, across: Index, source: Floats, s: int, step: Index, length: int
) -> None:
    """``A^T m``: ``side`` vectors to four."""
    step, across = _U(step), _U(across)
    if side == 6:
        for c in range(_U(length)):
            i, j = _U(s) + c, _U(o) + c
            m0, m1, m2 = source[i], source[i + step], source[i + _U(2) * step]
            m3, m4, m5 = source[i + _U(3) * step], source[i + _U(4) * step], source[i + _U(5) * step]
            even_1, even_2, odd_1, odd_2 = m1 + m2, m3 + m4, m1 - m2, m3 - m4
            out[j] = m0 + even_1 + even_2
            out[j + across] = odd_1 + _F2 * odd_2
            out[j + _U(2) * across] = even_1 + _F4 * even_2
            out[j + _U(3) * across] = odd_1 + _F8 * odd_2 + m5
    else:
        for c in range(_U(length)):
            i, j = _U(s) + c, _U(o) + c
            m0, m1, m2 = source[i], source[i + step], source[i + _U(2) * step]
            m3, m4, m5 = source[i + _U(3) * step], source[i + _U(4) * step], source[i + _U(5) * step]
            m6, m7 = source[i + _U(6) * step], source[i + _U(7) * step]
            even_1, even_2, even_3 = m1 + m2, m3 + m4, m5 + m6
            odd_1, odd_2, odd_3 = m1 - m2, m3 - m4, m5 - m6
            out[j] = m0 + even_1 + even_2 + even_3
            out[j + across] = odd_1 + _F2 * odd_2 + _F1_2 * odd_3
            out[j + _U(2) * across] = even_1 + _F4 * even_2 + _F1_4 * even_3
            out[j + _U(3) * across] = odd_1 + _F8 * odd_2 + _F1_8 * odd_3 + m7


@kernel
def _output_transposed(
    side: int, out: Floats, o: int, across: Index, source: Floats, s: int, step: Index, length: int
) -> None:
    """``A y``: four vectors to ``side``."""
    step, across = _U(step), _U(across)
    for c in range(_U(length)):
        i, j = _U(s) + c, _U(o) + c
        y0, y1, y2, y3 = source[i], source[i + step], source[i + _U(2) * step], source[i + _U(3) * step]
        out[j] = y0
        out[j + across] = (y0 + y2) + (y1 + y3)
        out[j + _U(2) * across] = (y0 + y2) - (y1 + y3)
        even, odd = y0 + _F4 * y2, _F2 * y1 + _F8 * y3
        out[j + _U(3) * across] = even + odd
        out[j + _U(4) * across] = even - odd
        if side == 6:
            out[j + _U(5) * across] = y3
        else:
            even, odd = y0 + _F1_4 * y2, _F1_2 * y1 + _F1_8 * y3
            out[j + _U(5) * across] = even + odd
            out[j + _U(6) * across] = even - odd
            out[j + _U(7) * across] = y3


@kernel
def _copy(out: Values, o: int, source: Values, s: int, length: int) -> None:
    for c in range(_U(length)):
        out[_U(o) + c] = narrow(out, wide(source[_U(s) + c]))


@kernel
def _copy_biased(
    out: Values, o: int, source: Floats, bias: Floats, least: np.float32, most: np.float32, pixels: int
) -> None:
    """Copy the first so many pixels of ``source``, ``bias`` added to each; NaN stays."""
    channels = len(bias)
    for pixel in range(pixels):
        for c in range(_U(channels)):
            i = _U(pixel * channels) + c
            out[_U(o) + i] = narrow(out, clamp(source[i] + bias[c], least, most))


@kernel
def input_tiles(
    images: Values, count: int, height: int, width: int, channels: int, padding: int,
    side: int, rows: int, columns: int, tiles: Floats,
) -> None:  # fmt: skip
    """``B^T d B`` of every tile that 4 x 4 results need."""
    padded_width = (columns - 1) * TILE + side
    line, across = padded_width * channels, count * rows * columns * channels
    padded = np.zeros(((rows - 1) * TILE + side) * line, np.float32)
    columns_done = np.empty(side * line, np.float32)
    for n in range(count):
        for y in range(height):
            start = (y + padding) * line + padding * channels
            _copy(padded, start, images, (n * height + y) * width * channels, width * channels)
        for row in range(rows):
            _input(side, columns_done, 0, line, padded, row * TILE * line, line, line)
            for column in range(columns):
                place = ((n * rows + row) * columns + column) * channels
                for i in range(side):
                    source, out = i * line + column * TILE * channels, side * i * across + place
                    _input(side, tiles, out, across, columns_done, source, channels, channels)


@kernel
def input_tiles_transposed(
    tiles: Floats, count: int, height: int, width: int, channels: int, padding: int,
    side: int, rows: int, columns: int, images: Values,
) -> None:  # fmt: skip
    """``B v B^T`` of every tile, summed where tiles overlap."""
    padded_width = (columns - 1) * TILE + side
    line, across = padded_width * channels, count * rows * columns * channels
    padded = np.empty(((rows - 1) * TILE + side) * line, np.float32)
    rows_done = np.empty(side * line, np.float32)
    for n in range(count):
        padded[:] = np.float32(0)
        for row in range(rows):
            rows_done[:] = np.float32(0)
            for column in range(columns):
                place = ((n * rows + row) * columns + column) * channels
                for i in range(side):
                    source, out = side * i * across + place, i * line + column * TILE * channels
                    _input_transposed(side, rows_done, out, channels, tiles, source, across, channels)
            _input_transposed(side, padded, row * TILE * line, line, rows_done, 0, line, line)
        for y in range(height):
            start = (y + padding) * line + padding * channels
            _copy(images, (n * height + y) * width * channels, padded, start, width * channels)


@kernel
def output_tiles(
    tiles: Floats, count: int, height: int, width: int, channels: int,
    side: int, rows: int, columns: int, bias: Floats, least: np.float32, most: np.float32, images: Values,
) -> None:  # fmt: skip
    """``A^T m A`` of every tile, without what reaches over the edge, ``bias`` added and within bounds."""
    line, used = columns * TILE * channels, width * channels
    across = count * rows * columns * channels
    rows_done, done = np.empty(side * line, np.float32), np.empty(TILE * used, np.float32)
    for n in range(count):
        for row in range(rows):
            for column in range(columns):
                place = ((n * rows + row) * columns + column) * channels
                for i in range(side):
                    source, out = side * i * across + place, i * line + column * TILE * channels
                    _output(side, rows_done, out, channels, tiles, source, across, channels)
            _output(side, done, 0, used, rows_done, 0, line, used)
            start, remaining = (n * height + row * TILE) * used, min(height - row * TILE, TILE)
            _copy_biased(images, start, done, bias, least, most, remaining * width)


@kernel
def output_tiles_transposed(
    images: Values, count: int, height: int, width: int, channels: int,
    side: int, rows: int, columns: int, tiles: Floats,
) -> None:  # fmt: skip
    """``A y A^T`` of every tile; what lies over the edge is zero."""
    line, used = columns * TILE * channels, width * channels
    across = count * rows * columns * channels
    columns_done, given = np.zeros(side * line, np.float32), np.zeros(TILE * used, np.float32)
    for n in range(count):
        for row in range(rows):
            start, remaining = (n * height + row * TILE) * used, min(height - row * TILE, TILE)
            _copy(given, 0, images, start, remaining * used)
            given[remaining * used :] = np.float32(0)
            _output_transposed(side, columns_done, 0, line, given, 0, used, used)
            for column in range(columns):
                place = ((n * rows + row) * columns + column) * channels
                for i in range(side):
                    source, out = i * line + column * TILE * channels, side * i * across + place
                    _output_transposed(side, tiles, out, across, columns_done, source, channels, channels)
