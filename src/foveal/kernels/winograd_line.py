"""Winograd's algorithm for filters of one row or one column, such as 1x7 and 7x1.

Along a column an image is lines of ``width * channels`` values, along a row lines of ``channels`` values;
so both are ``[sets, lines, length]``, and whole lines are combined. The matrices are made for any length of
filters and tiles by Toom and Cook's construction; tiles are as long as keeps rounding below 3e-5 of the
largest result.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cache, cached_property
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from foveal.kernels.compiled import array, clamp, flat, kernel, narrow, wide
from foveal.kernels.winograd import Plan

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from foveal.kernels.compiled import Floats, Values

    Indices = NDArray[np.uintp]

_POINTS = tuple(
    Fraction(point) for point in ("0", "1", "-1", "2", "-2", "1/2", "-1/2", "3/4", "-3/4", "3/2", "-3/2")
)
_LONGEST = len(_POINTS) + 1  # tile
LENGTHS = (3, 5, 7)
"""Of filters."""
_BLOCK = 512  # values of lines that are combined at a time, so that all of them stay in the first cache
_U = np.uintp


class Matrices(NamedTuple):
    """Of tiles of so many results with filters of so many taps; ``points`` is the sum less one.

    Attributes:
        inputs: ``[points, points]``, of the tiles' values.
        filters: ``[points, taps]``.
        outputs: ``[results, points]``, of the products.
    """

    inputs: Floats
    filters: Floats
    outputs: Floats


@dataclass(frozen=True)
class LinePlan(Plan):
    """A convolution with filters of one row or one column, padded along it alone."""

    @property
    def _axis(self) -> int:
        return 0 if self.kernel[1] == 1 else 1

    @property
    def taps(self) -> int:
        """Of the filters."""
        return self.kernel[self._axis]

    @cached_property
    def results(self) -> int:
        """That a tile gives: so many that the products are fewest."""
        extent = self.result[self._axis]
        choices = range(2, _LONGEST - self.taps + 2)
        return min(choices, key=lambda results: -(-extent // results) * (results + self.taps - 1))

    @property
    def points(self) -> int:
        """How many values a tile has for each channel."""
        return self.results + self.taps - 1

    @property
    def tiles(self) -> int:
        """How many tiles an image has."""
        return self._count * self.result[1 - self._axis]

    @property
    def _count(self) -> int:
        """Tiles along the filters."""
        return -(-self.result[self._axis] // self.results)

    def transformed(self, weight: Tensor) -> Tensor:
        """``G g`` of each filter."""
        matrix = torch.from_numpy(self._matrices.filters)
        return torch.einsum("it,oct->ico", matrix, weight.flatten(2)).contiguous()

    def transformed_back(self, gradient: Tensor) -> Tensor:
        """``G^T u``."""
        weight = torch.einsum("it,ico->oct", torch.from_numpy(self._matrices.filters), gradient)
        return weight.reshape(self.outputs, self.inputs, *self.kernel)

    def input_tiles(self, images: Tensor) -> Tensor:
        """``B^T d``."""
        tiles = self.new_tiles(len(images), self.inputs)
        sizes = self._lines(images)
        _make_tiles(
            flat(images),
            *sizes,
            self._matrices.inputs,
            -self._along,
            self.results,
            self._count,
            flat(tiles),
        )
        return tiles

    def input_tiles_transposed(self, tiles: Tensor, images: Tensor) -> None:
        """``B v``."""
        sets, extent, length = self._lines(images)
        matrix = np.ascontiguousarray(self._matrices.inputs.T)
        _add_tiles(
            flat(tiles), sets, self._count, length, matrix, self._along, self.results, extent, flat(images)
        )

    def output_tiles(self, tiles: Tensor, bias: Tensor, within: tuple[float, float], images: Tensor) -> None:
        """``A^T m``."""
        sets, extent, length = self._lines(images)
        added = array(bias.repeat(length // self.outputs)), *map(np.float32, within)
        _use_tiles(
            flat(tiles), sets, self._count, length, self._matrices.outputs, *added, extent, flat(images)
        )

    def output_tiles_transposed(self, images: Tensor) -> Tensor:
        """``A y``."""
        tiles = self.new_tiles(len(images), self.outputs)
        matrix = np.ascontiguousarray(self._matrices.outputs.T)
        _make_tiles(flat(images), *self._lines(images), matrix, 0, self.results, self._count, flat(tiles))
        return tiles

    @property
    def _along(self) -> int:
        return self.padding[self._axis]

    @property
    def _matrices(self) -> Matrices:
        return matrices(self.results, self.taps)

    def _lines(self, images: Tensor) -> tuple[int, int, int]:
        """How many sets of lines ``[B, H, W, C]`` has, lines a set has, and values a line has."""
        batch, height, width, channels = images.shape
        return (batch * height, width, channels) if self._axis else (batch, height, width * channels)


@cache
def matrices(results: int, taps: int) -> Matrices:
    """The matrices ``B^T``, ``G`` and ``A^T`` for points of which one is infinity.

    A row of ``B^T`` has the coefficients of the polynomial that is zero at all other points. It is divided by
    a power of two near the largest of them, and the row of ``G`` multiplied by it.
    """
    points = _POINTS[: results + taps - 2]
    rows, filters = [], []
    for point in points:
        others = [other for other in points if other != point]
        scale = prod(point - other for other in others)
        rows.append([*_zero_at(others), Fraction(0)])
        filters.append([point**power / scale for power in range(taps)])
    rows.append(_zero_at(points))
    filters.append([Fraction(power == taps - 1) for power in range(taps)])
    outputs = [[*(p**power for p in points), Fraction(power == results - 1)] for power in range(results)]
    inputs = np.array(rows, np.float64)
    scales = 2.0 ** np.round(np.log2(np.abs(inputs).max(axis=1, keepdims=True)))
    return Matrices(
        (inputs / scales).astype(np.float32),
        (np.array(filters, np.float64) * scales).astype(np.float32),
        np.array(outputs, np.float32),
    )


def _zero_at(points: Any) -> list[Fraction]:
    """The coefficients of the product of all ``x - point``, from the lowest."""
    coefficients = [Fraction(1)]
    for point in points:
        shifted, scaled = [Fraction(0), *coefficients], [*coefficients, Fraction(0)]
        coefficients = [low - point * high for low, high in zip(shifted, scaled, strict=True)]
    return coefficients


@kernel
def _combine(
    out: Floats,
    o: int,
    length: int,
    source: Values,
    factors: Floats,
    starts: Indices,
    first: int,
    fresh: bool,
) -> None:
    """Add twelve lines of ``source`` by their factors to one of ``out``; ``fresh``: forget what was there.

    In one loop, as lines are often no longer than what it takes to begin a loop. Arrays are flat.
    """
    f0, f1, f2, f3, f4, f5 = factors[0], factors[1], factors[2], factors[3], factors[4], factors[5]
    f6, f7, f8, f9, f10, f11 = factors[6], factors[7], factors[8], factors[9], factors[10], factors[11]
    s = _U(first)
    n0, n1, n2, n3 = starts[0] + s, starts[1] + s, starts[2] + s, starts[3] + s
    n4, n5, n6, n7 = starts[4] + s, starts[5] + s, starts[6] + s, starts[7] + s
    n8, n9, n10, n11 = starts[8] + s, starts[9] + s, starts[10] + s, starts[11] + s
    begin = _U(o)
    for x in range(_U(length)):
        a = f0 * wide(source[n0 + x]) + f1 * wide(source[n1 + x]) + f2 * wide(source[n2 + x])
        b = f3 * wide(source[n3 + x]) + f4 * wide(source[n4 + x]) + f5 * wide(source[n5 + x])
        c = f6 * wide(source[n6 + x]) + f7 * wide(source[n7 + x]) + f8 * wide(source[n8 + x])
        d = f9 * wide(source[n9 + x]) + f10 * wide(source[n10 + x]) + f11 * wide(source[n11 + x])
        total = (a + b) + (c + d)
        out[begin + x] = total if fresh else out[begin + x] + total


@kernel
def _make_tiles(
    lines: Values, sets: int, extent: int, length: int, matrix: Floats, first: int, step: int,
    count: int, tiles: Floats,
) -> None:  # fmt: skip
    """``matrix`` times the lines of every tile, which begin at ``first`` and are ``step`` apart."""
    points, taken = matrix.shape
    factors, starts = np.zeros((points, _LONGEST), np.float32), np.zeros(_LONGEST, np.uintp)
    for tile in range(count):
        for k in range(taken):
            y = first + tile * step + k
            # What lies outside is zero: any line will do, times zero.
            starts[k] = _U(min(max(y, 0), extent - 1) * length)
            for point in range(points):
                factors[point, k] = matrix[point, k] if 0 <= y < extent else np.float32(0)
        for n in range(sets):
            for begin in range(0, length, _BLOCK):
                size = min(_BLOCK, length - begin)
                for point in range(points):
                    out = ((point * sets + n) * count + tile) * length + begin
                    first_value = n * extent * length + begin
                    _combine(tiles, out, size, lines, factors[point], starts, first_value, True)


@kernel
def _add_tiles(
    tiles: Floats, sets: int, count: int, length: int, matrix: Floats, first: int, step: int,
    extent: int, lines: Values,
) -> None:  # fmt: skip
    """``matrix`` times every tile, summed where tiles overlap; ``first`` lines before the image are left."""
    given, points = matrix.shape
    factors, starts = np.zeros((given, _LONGEST), np.float32), np.zeros(_LONGEST, np.uintp)
    factors[:, :points] = matrix
    for k in range(points):
        starts[k] = _U(k * sets * count * length)
    sums = np.empty(max((count - 1) * step + given, first + extent) * _BLOCK, np.float32)
    for n in range(sets):
        for begin in range(0, length, _BLOCK):
            size = min(_BLOCK, length - begin)
            sums[:] = np.float32(0)
            for tile in range(count):
                source = (n * count + tile) * length + begin
                for i in range(given):
                    out = (tile * step + i) * _BLOCK
                    _combine(sums, out, size, tiles, factors[i], starts, source, False)
            for y in range(extent):
                place, summed = _U((n * extent + y) * length + begin), _U((first + y) * _BLOCK)
                for x in range(_U(size)):
                    lines[place + x] = narrow(lines, sums[summed + x])


@kernel
def _use_tiles(
    tiles: Floats, sets: int, count: int, length: int, matrix: Floats, bias: Floats,
    least: np.float32, most: np.float32, extent: int, lines: Values,
) -> None:  # fmt: skip
    """``matrix`` times every tile, without what reaches over the end, ``bias`` added and within bounds."""
    step, points = matrix.shape
    factors, starts = np.zeros((step, _LONGEST), np.float32), np.zeros(_LONGEST, np.uintp)
    factors[:, :points] = matrix
    for k in range(points):
        starts[k] = _U(k * sets * count * length)
    sums = np.empty(_BLOCK, np.float32)
    for n in range(sets):
        for tile in range(count):
            for begin in range(0, length, _BLOCK):
                size, added = min(_BLOCK, length - begin), _U(begin)
                source = (n * count + tile) * length + begin
                for i in range(min(step, extent - tile * step)):
                    _combine(sums, 0, size, tiles, factors[i], starts, source, True)
                    place = _U((n * extent + tile * step + i) * length + begin)
                    for x in range(_U(size)):
                        value = clamp(sums[x] + bias[added + x], least, most)
                        lines[place + x] = narrow(lines, value)
