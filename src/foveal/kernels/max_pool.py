"""Max-pooling on a processor, and its gradient, made image by image in the cache.

PyTorch's keeps 8 bytes for each result's place, and fills the whole gradient with zeros before it adds to it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.autograd.function import once_differentiable

from foveal.kernels.compiled import array, kernel, narrow, wide
from foveal.kernels.threads import in_threads

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from foveal.kernels.compiled import Values

    Places = NDArray[np.int32]

_U = np.uintp


class MaxPool(torch.autograd.Function):
    """``functional.max_pool2d`` of ``[B, C, H, W]``, with the same answer to ties and NaN."""

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, kernel: tuple[int, int], stride: tuple[int, int],
        padding: tuple[int, int], result: tuple[int, int],
    ) -> Tensor:  # fmt: skip
        """The largest value of each window; the result is channels_last.

        Args:
            ctx: of autograd.
            images: float32 or bfloat16 ``[B, C, H, W]``.
            kernel: height and width of the windows.
            stride: between them.
            padding: rows and columns of minus infinity before the first.
            result: how many windows there are; each must reach into the image.
        """
        pixels = images.permute(0, 2, 3, 1).contiguous()
        found = pixels.new_empty(len(pixels), *result, pixels.shape[3])
        places = torch.empty(found.shape, dtype=torch.int32)
        arrays = [array(each) for each in (pixels, found, places)]
        ctx.sizes = (*kernel, *stride, *padding)
        in_threads(lambda first, last: _pool(*arrays, first, last, *ctx.sizes), len(pixels))
        ctx.shape = pixels.shape
        ctx.save_for_backward(places)
        return found.permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient, at the pixel that was the largest of its window."""
        (places,) = ctx.saved_tensors
        result = gradient.new_empty(ctx.shape)
        given = gradient.permute(0, 2, 3, 1).contiguous()
        arrays = [array(each) for each in (given, places, result)]
        in_threads(lambda first, last: _spread(*arrays, first, last, *ctx.sizes), len(result))
        return result.permute(0, 3, 1, 2), None, None, None, None


@kernel
def _window(number: int, stride: int, padding: int, size: int, extent: int) -> tuple[int, int]:
    """First and last (exclusive) pixel of a window along one axis, without what is padded."""
    start = number * stride - padding
    return max(start, 0), min(start + size, extent)


@kernel
def _pool(
    images: Values, found: Values, places: Places, first: int, last: int,
    kernel_height: int, kernel_width: int, down: int, right: int, above: int, before: int,
) -> None:  # fmt: skip
    """Fill ``found``, and ``places`` with ``row * W + column`` of what was found."""
    height, width, channels = images.shape[1:]
    for n in range(first, last):
        for row in range(found.shape[1]):
            top, bottom = _window(row, down, above, kernel_height, height)
            for column in range(found.shape[2]):
                left, end = _window(column, right, before, kernel_width, width)
                best, where = found[n, row, column], places[n, row, column]
                for c in range(_U(channels)):
                    best[c] = images[n, top, left, c]
                    where[c] = top * width + left
                for y in range(top, bottom):
                    for x in range(left, end):
                        place, pixel = np.int32(y * width + x), images[n, y, x]
                        for c in range(_U(channels)):
                            value, old, old_place = pixel[c], best[c], where[c]
                            real = wide(value)
                            better = (real > wide(old)) | (real != real)  # noqa: PLR0124 - it is NaN
                            best[c] = value if better else old
                            where[c] = place if better else old_place


@kernel
def _spread(
    gradient: Values, places: Places, result: Values, first: int, last: int,
    kernel_height: int, kernel_width: int, down: int, right: int, above: int, before: int,
) -> None:  # fmt: skip
    height, width, channels = result.shape[1:]
    for n in range(first, last):
        result[n] = 0
        for row in range(gradient.shape[1]):
            top, bottom = _window(row, down, above, kernel_height, height)
            for column in range(gradient.shape[2]):
                left, end = _window(column, right, before, kernel_width, width)
                given, where = gradient[n, row, column], places[n, row, column]
                for y in range(top, bottom):
                    for x in range(left, end):
                        place, pixel = np.int32(y * width + x), result[n, y, x]
                        for c in range(_U(channels)):
                            old = pixel[c]
                            more = narrow(result, wide(old) + wide(given[c]))
                            pixel[c] = more if where[c] == place else old
