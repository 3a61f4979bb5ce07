"""Convolutions on a processor by Winograd's algorithm, in float32, forward and backward.

Of a 3x3 filter, 16 results take 36 products in place of 144, of a 5x5 filter 64 in place of 400. The backward
pass is the transpose of the forward one, so that each gradient's tiles are made once and used twice.

Sources: S. Winograd, "Arithmetic complexity of computations", 1980; A. Lavin, S. Gray, "Fast algorithms for
convolutional neural networks", 2015. Rounding: about 1e-5 of the largest result, where a direct convolution
has about 1e-6.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from foveal.kernels import winograd_tiles
from foveal.kernels.compiled import array
from foveal.kernels.threads import in_threads
from foveal.kernels.winograd_tiles import TILE

if TYPE_CHECKING:
    from collections.abc import Iterator

# The points at which polynomials are taken, but for infinity, and the products of their differences, by the
# side of the filters.
_POINTS = {
    3: ((0, 4), (1, -6), (-1, -6), (2, 24), (-2, 24)),
    5: ((0, -1), (1, -9 / 2), (-1, -9 / 2), (2, 90), (-2, 90), (1 / 2, 45 / 32), (-1 / 2, 45 / 32)),
}
_CHUNK = 6 << 20  # bytes of tiles that a thread works on at a time: a share of the last cache
_DIRECT, _PRODUCTS, _TRAFFIC, _START = 390e9, 285e9, 15e9, 1e-3


@dataclass(frozen=True)
class Plan:
    """The sizes of one convolution.

    Attributes:
        kernel: side of the filters, 3 or 5.
        padding: on each side.
        inputs, outputs: channels.
        height, width: of the images.
    """

    kernel: int
    padding: int
    inputs: int
    outputs: int
    height: int
    width: int

    @classmethod
    def of(cls, images: Tensor, weight: Tensor, padding: int) -> Plan:
        """Of ``[B, C, H, W]`` and ``[outputs, C, k, k]``."""
        return cls(weight.shape[2], padding, weight.shape[1], len(weight), *images.shape[2:])

    @property
    def side(self) -> int:
        """Of the tiles that are multiplied."""
        return TILE + self.kernel - 1

    @property
    def result(self) -> tuple[int, int]:
        """Height and width of the result."""
        shrinks = self.kernel - 1 - 2 * self.padding
        return self.height - shrinks, self.width - shrinks

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tiles."""
        height, width = self.result
        return -(-height // TILE), -(-width // TILE)

    def pays_off(self, count: int) -> bool:
        """Whether so many images should take less time than a direct convolution.

        Its products and these here run at ``_DIRECT`` and ``_PRODUCTS`` operations a second; tiles are made
        and used at ``_TRAFFIC`` bytes a second, and threads that wait busily for more of torch's work stand
        in the way for a while (``_START``). All of it was measured on two cores; more of them change the
        rates by much the same factor.
        """
        rows, columns = self.grid
        height, width = self.result
        filters, tiles = self.inputs * self.outputs, count * rows * columns * self.side**2
        direct = 2 * count * height * width * filters * self.kernel**2 / _DIRECT
        moved = 4 * tiles * (self.inputs + self.outputs)
        return 2 * tiles * filters / _PRODUCTS + moved / _TRAFFIC + _START < direct

    def chunks(self, first: int, last: int) -> Iterator[slice]:
        """Parts of these images whose tiles fit into the cache together."""
        rows, columns = self.grid
        each = rows * columns * (self.inputs + self.outputs) * self.side**2 * 4
        count = last - first
        parts = min(count, -(-count * each // _CHUNK))
        for number in range(parts):
            yield slice(first + count * number // parts, first + count * (number + 1) // parts)


class WinogradConvolution(torch.autograd.Function):
    """``functional.conv2d`` with stride 1, filters of 3x3 or 5x5 and the same padding on all sides."""

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, weight: Tensor, bias: Tensor | None, padding: int, dtype: torch.dtype
    ) -> Tensor:
        """Convolve ``[B, C, H, W]`` with ``[outputs, C, k, k]``; the result is channels_last.

        Args:
            ctx: of autograd.
            images: float32 or bfloat16; so is their gradient.
            weight: float32.
            bias: float32, or None.
            padding: on each side.
            dtype: of the result, float32 or bfloat16.

        Raises:
            ValueError: the images have other channels than the filters.
        """
        if images.shape[1] != weight.shape[1]:  # the kernels would read what is not theirs
            raise ValueError(f"images of {images.shape[1]} channels, filters of {weight.shape[1]}")
        ctx.plan = plan = Plan.of(images, weight, padding)
        ctx.save_for_backward(images, weight)
        ctx.biased = bias is not None
        values, filters = _nhwc(images), _transformed(weight)
        result = torch.empty(len(values), *plan.result, plan.outputs, dtype=dtype)
        added = torch.zeros(plan.outputs) if bias is None else bias

        def convolve(first: int, last: int) -> None:
            for part in plan.chunks(first, last):
                products = torch.bmm(_input_tiles(plan, values[part]), filters)
                _output_tiles(plan, products, added, result[part])

        in_threads(convolve, len(values))
        return result.permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of images, weight and bias, where they are needed."""
        images, weight = ctx.saved_tensors
        plan: Plan = ctx.plan
        wants_images, wants_weight, wants_bias, *_ = ctx.needs_input_grad
        values, gradients = _nhwc(images), _nhwc(gradient)
        filters = _transformed(weight).mT if wants_images else None
        image_gradient = torch.empty_like(values)

        def convolve(first: int, last: int) -> Tensor:
            total = torch.zeros(plan.side**2, plan.inputs, plan.outputs)
            for part in plan.chunks(first, last):
                products = _output_tiles_transposed(plan, gradients[part])
                if wants_weight:
                    total.baddbmm_(_input_tiles(plan, values[part]).mT, products)
                if filters is not None:
                    _input_tiles_transposed(plan, torch.bmm(products, filters), image_gradient[part])
            return total

        totals = in_threads(convolve, len(values)) if wants_images or wants_weight else []
        return (
            image_gradient.permute(0, 3, 1, 2) if wants_images else None,
            _transformed_back(torch.stack(totals).sum(0), plan) if wants_weight else None,
            gradients.sum((0, 1, 2), dtype=torch.float32) if ctx.biased and wants_bias else None,
            None,
            None,
        )


def _nhwc(images: Tensor) -> Tensor:
    """``[B, C, H, W]`` as contiguous ``[B, H, W, C]``: no copy where it is channels_last."""
    return images.permute(0, 2, 3, 1).contiguous()


@cache
def _filter_transform(kernel: int) -> Tensor:
    """The matrix G, ``[side, kernel]``."""
    rows = [[point**power / scale for power in range(kernel)] for point, scale in _POINTS[kernel]]
    return torch.tensor([*rows, [0.0] * (kernel - 1) + [1.0]])


def _transformed(weight: Tensor) -> Tensor:
    """``G g G^T`` of ``[outputs, inputs, k, k]`` as ``[side * side, inputs, outputs]``."""
    matrix = _filter_transform(weight.shape[2])
    return torch.einsum("ia,jb,ocab->ijco", matrix, matrix, weight).flatten(0, 1).contiguous()


def _transformed_back(gradient: Tensor, plan: Plan) -> Tensor:
    """``G^T u G`` of ``[side * side, inputs, outputs]`` as ``[outputs, inputs, k, k]``."""
    matrix = _filter_transform(plan.kernel)
    return torch.einsum(
        "ia,jb,ijco->ocab", matrix, matrix, gradient.view(plan.side, plan.side, *gradient.shape[1:])
    )


def _input_tiles(plan: Plan, images: Tensor) -> Tensor:
    """``[side * side, tiles, inputs]`` of ``[B, H, W, inputs]``."""
    tiles = _new_tiles(plan, len(images), plan.inputs)
    winograd_tiles.input_tiles(
        _flat(images), len(images), plan.height, plan.width, plan.inputs, plan.padding, plan.side, *plan.grid,
        _flat(tiles),
    )  # fmt: skip
    return tiles


def _input_tiles_transposed(plan: Plan, tiles: Tensor, images: Tensor) -> None:
    """Fill ``[B, H, W, inputs]``."""
    winograd_tiles.input_tiles_transposed(
        _flat(tiles), len(images), plan.height, plan.width, plan.inputs, plan.padding, plan.side, *plan.grid,
        _flat(images),
    )  # fmt: skip


def _output_tiles(plan: Plan, tiles: Tensor, bias: Tensor, images: Tensor) -> None:
    """Fill ``[B, height, width, outputs]``."""
    sizes = (*plan.result, plan.outputs, plan.side, *plan.grid)
    winograd_tiles.output_tiles(_flat(tiles), len(images), *sizes, array(bias), _flat(images))


def _output_tiles_transposed(plan: Plan, images: Tensor) -> Tensor:
    """``[side * side, tiles, outputs]`` of ``[B, height, width, outputs]``."""
    tiles = _new_tiles(plan, len(images), plan.outputs)
    sizes = (*plan.result, plan.outputs, plan.side, *plan.grid)
    winograd_tiles.output_tiles_transposed(_flat(images), len(images), *sizes, _flat(tiles))
    return tiles


def _new_tiles(plan: Plan, count: int, channels: int) -> Tensor:
    rows, columns = plan.grid
    return torch.empty(plan.side**2, count * rows * columns, channels)


def _flat(values: Tensor) -> Any:
    return array(values.view(-1))
