"""Winograd's algorithm for filters of 3x3 and 5x5, with tiles of 4 x 4 results."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from foveal.kernels import winograd_tiles
from foveal.kernels.compiled import array, flat
from foveal.kernels.winograd import Plan
from foveal.kernels.winograd_tiles import TILE

# The points at which polynomials are taken, but for infinity, and the products of their differences, by the
# side of the filters.
_POINTS = {
    3: ((0, 4), (1, -6), (-1, -6), (2, 24), (-2, 24)),
    5: ((0, -1), (1, -9 / 2), (-1, -9 / 2), (2, 90), (-2, 90), (1 / 2, 45 / 32), (-1 / 2, 45 / 32)),
}
SIDES = tuple(_POINTS)
"""Of filters."""


@dataclass(frozen=True)
class SquarePlan(Plan):
    """A convolution with filters of 3x3 or 5x5, and the same padding on all sides."""

    @property
    def side(self) -> int:
        """Of the tiles that are multiplied."""
        return TILE + self.kernel[0] - 1

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tiles."""
        height, width = self.result
        return -(-height // TILE), -(-width // TILE)

    @property
    def points(self) -> int:
        """How many values a tile has for each channel."""
        return self.side**2

    @property
    def tiles(self) -> int:
        """How many tiles an image has."""
        return self.grid[0] * self.grid[1]

    def transformed(self, weight: Tensor) -> Tensor:
        """``G g G^T`` of each filter."""
        matrix = _filter_transform(self.kernel[0])
        return torch.einsum("ia,jb,ocab->ijco", matrix, matrix, weight).flatten(0, 1).contiguous()

    def transformed_back(self, gradient: Tensor) -> Tensor:
        """``G^T u G``."""
        matrix = _filter_transform(self.kernel[0])
        square = gradient.view(self.side, self.side, *gradient.shape[1:])
        return torch.einsum("ia,jb,ijco->ocab", matrix, matrix, square)

    def input_tiles(self, images: Tensor) -> Tensor:
        """``B^T d B``."""
        tiles = self.new_tiles(len(images), self.inputs)
        winograd_tiles.input_tiles(flat(images), len(images), *self._input_sizes, flat(tiles))
        return tiles

    def input_tiles_transposed(self, tiles: Tensor, images: Tensor) -> None:
        """``B v B^T``."""
        winograd_tiles.input_tiles_transposed(flat(tiles), len(images), *self._input_sizes, flat(images))

    def output_tiles(self, tiles: Tensor, bias: Tensor, within: tuple[float, float], images: Tensor) -> None:
        """``A^T m A``."""
        added = array(bias), *map(np.float32, within)
        winograd_tiles.output_tiles(flat(tiles), len(images), *self._output_sizes, *added, flat(images))

    def output_tiles_transposed(self, images: Tensor) -> Tensor:
        """``A y A^T``."""
        tiles = self.new_tiles(len(images), self.outputs)
        winograd_tiles.output_tiles_transposed(flat(images), len(images), *self._output_sizes, flat(tiles))
        return tiles

    @property
    def _input_sizes(self) -> tuple[int, ...]:
        return self.height, self.width, self.inputs, self.padding[0], self.side, *self.grid

    @property
    def _output_sizes(self) -> tuple[int, ...]:
        return *self.result, self.outputs, self.side, *self.grid


@cache
def _filter_transform(kernel: int) -> Tensor:
    """The matrix G, ``[side, kernel]``."""
    rows = [[point**power / scale for power in range(kernel)] for point, scale in _POINTS[kernel]]
    return torch.tensor([*rows, [0.0] * (kernel - 1) + [1.0]])
