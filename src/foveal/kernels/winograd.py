"""Convolutions on a processor by Winograd's algorithm, in float32, forward and backward.

Images are cut into overlapping tiles; tiles and filters are taken for values of polynomials at some points,
multiplied point by point, and their products turned back into results. Of a 3x3 filter, 16 results take 36
products in place of 144, of a 5x5 filter 64 in place of 400, of a 1x7 filter 6 results 12 in place of 42. The
backward pass is the transpose of the forward one, so that each gradient's tiles are made once and used twice.

Sources: S. Winograd, "Arithmetic complexity of computations", 1980; A. Lavin, S. Gray, "Fast algorithms for
convolutional neural networks", 2015. Rounding: 1e-5 to 3e-5 of the largest result, where a direct convolution
has about 1e-6.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from foveal.kernels.threads import in_threads

if TYPE_CHECKING:
    from collections.abc import Iterator

_CHUNK = 6 << 20  # bytes of tiles that a thread works on at a time: a share of the last cache
_DIRECT, _PRODUCTS, _TRAFFIC, _START = 390e9, 285e9, 15e9, 1e-3


@dataclass(frozen=True)
class Plan(ABC):
    """One convolution: its sizes, and how tiles are made and used.

    Attributes:
        kernel: height and width of the filters.
        padding: rows above and below, and columns on either side.
        inputs, outputs: channels.
        height, width: of the images.
    """

    kernel: tuple[int, int]
    padding: tuple[int, int]
    inputs: int
    outputs: int
    height: int
    width: int

    @property
    def result(self) -> tuple[int, int]:
        """Height and width of the result."""
        (tall, wide), (above, beside) = self.kernel, self.padding
        return self.height + 2 * above - tall + 1, self.width + 2 * beside - wide + 1

    @property
    @abstractmethod
    def points(self) -> int:
        """How many values a tile has for each channel."""

    @property
    @abstractmethod
    def tiles(self) -> int:
        """How many tiles an image has."""

    @abstractmethod
    def transformed(self, weight: Tensor) -> Tensor:
        """``[points, inputs, outputs]`` of filters ``[outputs, inputs, *kernel]``."""

    @abstractmethod
    def transformed_back(self, gradient: Tensor) -> Tensor:
        """The transpose of :meth:`transformed`."""

    @abstractmethod
    def input_tiles(self, images: Tensor) -> Tensor:
        """``[points, B * tiles, inputs]`` of ``[B, H, W, inputs]``."""

    @abstractmethod
    def input_tiles_transposed(self, tiles: Tensor, images: Tensor) -> None:
        """Fill ``[B, H, W, inputs]`` with the gradients of these tiles."""

    @abstractmethod
    def output_tiles(self, tiles: Tensor, bias: Tensor, within: tuple[float, float], images: Tensor) -> None:
        """Fill ``[B, *result, outputs]`` from ``[points, B * tiles, outputs]``."""

    @abstractmethod
    def output_tiles_transposed(self, images: Tensor) -> Tensor:
        """``[points, B * tiles, outputs]`` of ``[B, *result, outputs]``."""

    def new_tiles(self, count: int, channels: int) -> Tensor:
        """Room for the tiles of so many images."""
        return torch.empty(self.points, count * self.tiles, channels)

    def pays_off(self, count: int) -> bool:
        """Whether so many images should take less time than a direct convolution.

        Its products and these here run at ``_DIRECT`` and ``_PRODUCTS`` operations a second; tiles are made
        and used at ``_TRAFFIC`` bytes a second, and threads that wait busily for more of torch's work stand
        in the way for a while (``_START``). All of it was measured on two cores; more of them change the
        rates by much the same factor.
        """
        filters, values = self.inputs * self.outputs, count * self.tiles * self.points
        direct = 2 * count * math.prod(self.result) * filters * math.prod(self.kernel) / _DIRECT
        moved = 4 * values * (self.inputs + self.outputs)
        return 2 * values * filters / _PRODUCTS + moved / _TRAFFIC + _START < direct

    def convolve(
        self,
        images: Tensor,
        filters: Tensor,
        bias: Tensor | None,
        dtype: torch.dtype = torch.float32,
        within: tuple[float, float] = (-math.inf, math.inf),
    ) -> Tensor:
        """Convolve float32 or bfloat16 ``[B, C, H, W]``; the result is channels_last.

        Args:
            images: of the planned size.
            filters: as :meth:`transformed` gives them.
            bias: float32.
            dtype: of the result, float32 or bfloat16.
            within: smaller values become the first, larger ones the second.

        Raises:
            ValueError: the images have another size.
        """
        planned = (self.inputs, self.height, self.width)
        if tuple(images.shape[1:]) != planned:  # the kernels would read what is not theirs
            raise ValueError(f"planned for images of {planned}, given {tuple(images.shape[1:])}")
        values = _nhwc(images)
        result = torch.empty(len(values), *self.result, self.outputs, dtype=dtype)
        added = torch.zeros(self.outputs) if bias is None else bias

        def compute(first: int, last: int) -> None:
            for part in self._chunks(first, last):
                products = torch.bmm(self.input_tiles(values[part]), filters)
                self.output_tiles(products, added, within, result[part])

        in_threads(compute, len(values))
        return result.permute(0, 3, 1, 2)

    def gradients(
        self, images: Tensor, filters: Tensor | None, gradient: Tensor, *, of_weight: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """The gradients of images, where the filters are given, and of weights."""
        values, gradients = _nhwc(images), _nhwc(gradient)
        turned = None if filters is None else filters.mT
        result = torch.empty_like(values)

        def compute(first: int, last: int) -> Tensor:
            total = torch.zeros(self.points, self.inputs, self.outputs)
            for part in self._chunks(first, last):
                products = self.output_tiles_transposed(gradients[part])
                if of_weight:
                    total.baddbmm_(self.input_tiles(values[part]).mT, products)
                if turned is not None:
                    self.input_tiles_transposed(torch.bmm(products, turned), result[part])
            return total

        totals = in_threads(compute, len(values)) if of_weight or turned is not None else []
        return (
            None if turned is None else result.permute(0, 3, 1, 2),
            self.transformed_back(torch.stack(totals).sum(0)) if of_weight else None,
        )

    def _chunks(self, first: int, last: int) -> Iterator[slice]:
        """Parts of these images whose tiles fit into the cache together."""
        each = self.tiles * (self.inputs + self.outputs) * self.points * 4
        count = last - first
        parts = min(count, -(-count * each // _CHUNK))
        for number in range(parts):
            yield slice(first + count * number // parts, first + count * (number + 1) // parts)


class WinogradConvolution(torch.autograd.Function):
    """``functional.conv2d`` as a :class:`Plan` has it."""

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, weight: Tensor, bias: Tensor | None, plan: Plan, dtype: torch.dtype
    ) -> Tensor:
        """Convolve ``[B, C, H, W]`` with ``[outputs, C, kh, kw]``; the result is channels_last.

        Args:
            ctx: of autograd.
            images: float32 or bfloat16; so is their gradient.
            weight: float32.
            bias: float32, or None.
            plan: of these.
            dtype: of the result, float32 or bfloat16.
        """
        ctx.plan, ctx.biased = plan, bias is not None
        ctx.save_for_backward(images, weight)
        return plan.convolve(images, plan.transformed(weight), bias, dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of images, weight and bias, where they are needed."""
        images, weight = ctx.saved_tensors
        plan: Plan = ctx.plan
        wants_images, wants_weight, wants_bias, *_ = ctx.needs_input_grad
        filters = plan.transformed(weight) if wants_images else None
        of_images, of_weight = plan.gradients(images, filters, gradient, of_weight=wants_weight)
        of_bias = gradient.sum((0, 2, 3), dtype=torch.float32) if ctx.biased and wants_bias else None
        return of_images, of_weight, of_bias, None, None


def _nhwc(images: Tensor) -> Tensor:
    """``[B, C, H, W]`` as contiguous ``[B, H, W, C]``: no copy where it is channels_last."""
    return images.permute(0, 2, 3, 1).contiguous()
