"""The fused processor kernels: one pass over a batch, without the interpreter and without its lock.

They are compiled by Numba once and kept on disk. ``nogil`` and not ``parallel``: the loader's threads are
the parallelism. Geometry is integer arithmetic, so that every back end gives the same bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numba
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray


def _kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    return numba.njit(nogil=True, cache=True, boundscheck=False)(function)


@_kernel
def translate(
    images: NDArray[np.uint8], down: NDArray[np.int64], right: NDArray[np.int64]
) -> NDArray[np.uint8]:
    """Shift each image of uint8 ``[B, H, W, C]`` by ``down`` and ``right`` pixels; zeros come in."""
    count, height, width, channels = images.shape
    out = np.zeros_like(images)
    for b in range(count):
        for y in range(max(0, down[b]), min(height, height + down[b])):
            for x in range(max(0, right[b]), min(width, width + right[b])):
                for c in range(channels):
                    out[b, y, x, c] = images[b, y - down[b], x - right[b], c]
    return out


@_kernel
def flip(images: NDArray[np.uint8], chosen: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Mirror the chosen images of uint8 ``[B, H, W, C]`` left to right."""
    count, height, width, channels = images.shape
    out = np.empty_like(images)
    for b in range(count):
        for y in range(height):
            for x in range(width):
                source = width - 1 - x if chosen[b] else x
                for c in range(channels):
                    out[b, y, x, c] = images[b, y, source, c]
    return out


@_kernel
def affine(images: NDArray[np.uint8], matrices: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Bilinear resampling of uint8 ``[B, H, W, C]`` in fixed point.

    ``matrices`` is int64 ``[B, 2, 3]``, in units of 2^-16 pixel: output (x, y) is read at
    (m00 x + m01 y + m02, m10 x + m11 y + m12); outside the image there are zeros.
    """
    count, height, width, channels = images.shape
    out = np.zeros_like(images)
    for b in range(count):
        m = matrices[b]
        for y in range(height):
            for x in range(width):
                fixed_x = m[0, 0] * x + m[0, 1] * y + m[0, 2]
                fixed_y = m[1, 0] * x + m[1, 1] * y + m[1, 2]
                left, top = fixed_x >> 16, fixed_y >> 16
                if left < -1 or top < -1 or left >= width or top >= height:
                    continue
                weight_x, weight_y = (fixed_x >> 8) & 255, (fixed_y >> 8) & 255
                for c in range(channels):
                    total = 32768
                    for dy in range(2):
                        for dx in range(2):
                            if 0 <= left + dx < width and 0 <= top + dy < height:
                                horizontal = weight_x if dx else 256 - weight_x
                                vertical = weight_y if dy else 256 - weight_y
                                total += np.int64(images[b, top + dy, left + dx, c]) * horizontal * vertical
                    out[b, y, x, c] = total >> 16
    return out


@_kernel
def cutout(
    images: NDArray[np.uint8], top: NDArray[np.int64], left: NDArray[np.int64], size: int
) -> NDArray[np.uint8]:
    """Set a square of each image of uint8 ``[B, H, W, C]`` to zero; it may reach beyond the edge."""
    count, height, width, _ = images.shape
    out = images.copy()
    for b in range(count):
        for y in range(max(0, top[b]), min(height, top[b] + size)):
            for x in range(max(0, left[b]), min(width, left[b] + size)):
                out[b, y, x] = 0
    return out


@_kernel
def normalize(images: NDArray[np.uint8], table: NDArray[np.float32]) -> NDArray[np.float32]:
    """Look up float32 ``[B, H, W, C]`` for uint8 ``[B, H, W, C]``; ``table`` is float32 ``[C, 256]``."""
    count, height, width, channels = images.shape
    out = np.empty(images.shape, np.float32)
    for b in range(count):
        for y in range(height):
            for x in range(width):
                for c in range(channels):
                    out[b, y, x, c] = table[c, images[b, y, x, c]]
    return out
