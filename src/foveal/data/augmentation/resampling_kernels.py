"""Processor kernels from bytes to bytes: interpolation, and the operations of TrivialAugment.

All arithmetic is on integers, so that both back ends give the same bytes. Images are uint8 ``[B, H, W, C]``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numba
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray


def _kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    return numba.njit(nogil=True, cache=True, boundscheck=False, error_model="numpy")(function)


@_kernel
def _copy(image: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            for c in range(image.shape[2]):
                out[y, x, c] = image[y, x, c]


@_kernel
def _frame(image: NDArray[np.uint8], framed: NDArray[np.uint8]) -> None:
    """Copy an image to the inside of a flat one that is a pixel larger on each side."""
    height, width, channels = image.shape
    for y in range(height):
        place = (y + 1) * (width + 2) * channels + channels
        for x in range(width):
            for c in range(channels):
                framed[place + x * channels + c] = image[y, x, c]


@_kernel
def affine(images: NDArray[np.uint8], matrices: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Bilinear resampling in fixed point.

    ``matrices`` is int64 ``[B, 2, 3]``, in units of 2^-16 pixel: output (x, y) is read at
    (m00 x + m01 y + m02, m10 x + m11 y + m12); outside the image there are zeros.
    """
    count, height, width, channels = images.shape
    out = np.empty_like(images)
    # With a frame of zeros, all four neighbours of a place within a pixel of the image exist.
    line = (width + 2) * channels
    framed = np.zeros((height + 2) * line, np.uint8)
    for b in range(count):
        m = matrices[b]
        if m[0, 0] == m[1, 1] == 65536 and m[0, 1] == m[0, 2] == m[1, 0] == m[1, 2] == 0:
            _copy(images[b], out[b])
            continue
        _frame(images[b], framed)
        for y in range(height):
            fixed_x, fixed_y = m[0, 1] * y + m[0, 2], m[1, 1] * y + m[1, 2]
            for x in range(width):
                left, top = fixed_x >> 16, fixed_y >> 16
                if left < -1 or top < -1 or left >= width or top >= height:
                    for c in range(channels):
                        out[b, y, x, c] = 0
                else:
                    u, v = (fixed_x >> 8) & 255, (fixed_y >> 8) & 255
                    place = np.uintp((top + 1) * line + (left + 1) * channels)
                    for c in range(channels):
                        upper = framed[place] * (256 - u) + framed[place + np.uintp(channels)] * u
                        below = place + np.uintp(line)
                        lower = framed[below] * (256 - u) + framed[below + np.uintp(channels)] * u
                        out[b, y, x, c] = (upper * (256 - v) + lower * v + 32768) >> 16
                        place += np.uintp(1)
                fixed_x += m[0, 0]
                fixed_y += m[1, 0]
    return out


@_kernel
def _narrow(
    image: NDArray[np.uint8], lefts: NDArray[np.int64], weights: NDArray[np.int32], channels: int, out: Any
) -> None:
    """Weighted sums along the rows ``[H, W * C]``."""
    step = np.uintp(channels)
    for y in range(len(image)):
        for x in range(len(lefts)):
            for c in range(step):
                total, place = 1 << 21, np.uintp(lefts[x]) * step + c
                for k in range(weights.shape[1]):
                    total += weights[x, k] * np.int64(image[y, place])
                    place += step
                out[y, np.uintp(x) * step + c] = min(max(total >> 22, 0), 255)


@_kernel
def _shorten(
    image: NDArray[np.uint8], tops: NDArray[np.int64], weights: NDArray[np.int32], sums: Any, out: Any
) -> None:
    """Weighted sums of the rows; ``sums`` is room for a row, in int32."""
    for y in range(len(tops)):
        for j in range(image.shape[1]):
            sums[j] = 1 << 21
        for k in range(weights.shape[1]):
            row, weight = np.uintp(tops[y] + k), weights[y, k]
            for j in range(image.shape[1]):
                sums[j] += weight * np.int32(image[row, j])
        for j in range(image.shape[1]):
            out[y, j] = min(max(sums[j] >> 22, 0), 255)


@_kernel
def resize(
    images: NDArray[np.uint8],
    tops: NDArray[np.int64],
    vertical: NDArray[np.int32],
    lefts: NDArray[np.int64],
    horizontal: NDArray[np.int32],
) -> NDArray[np.uint8]:
    """Weighted sums along rows, rounded to bytes, then along columns.

    Output row y is made of the input rows from ``tops[b, y]`` on, with weights ``vertical[b, y]`` in units of
    2^-22; columns likewise. A first axis of 1 serves all images.
    """
    count, rows, columns, channels = images.shape
    height, width = tops.shape[1], lefts.shape[1]
    flat = images.reshape(count, rows, columns * channels)
    out = np.empty((count, height, width * channels), np.uint8)
    narrow = np.empty((rows, width * channels), np.uint8)
    sums = np.empty(width * channels, np.int32)
    for b in range(count):
        v, h = b if len(tops) > 1 else 0, b if len(lefts) > 1 else 0
        first, last = tops[v, 0], tops[v, -1] + vertical.shape[2]
        _narrow(flat[b, first:last], lefts[h], horizontal[h], channels, narrow[first:last])
        _shorten(narrow, tops[v], vertical[v], sums, out[b])
    return out.reshape(count, height, width, channels)


@_kernel
def histogram(images: NDArray[np.uint8]) -> NDArray[np.int64]:
    """How often each byte occurs in each channel: int64 ``[B, C, 256]``."""
    count, height, width, channels = images.shape
    out = np.zeros((count, channels, 256), np.int64)
    for b in range(count):
        for y in range(height):
            for x in range(width):
                for c in range(channels):
                    out[b, c, images[b, y, x, c]] += 1
    return out


@_kernel
def look_up(images: NDArray[np.uint8], tables: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Replace bytes as ``tables``, uint8 ``[B, C, 256]``, say."""
    count, height, width, channels = images.shape
    out = np.empty_like(images)
    for b in range(count):
        for y in range(height):
            for x in range(width):
                for c in range(channels):
                    out[b, y, x, c] = tables[b, c, images[b, y, x, c]]
    return out


@_kernel
def _blended(base: int, value: int, factor: int) -> int:
    """``base + factor * (value - base)``, within bytes; ``factor`` in units of 2^-16."""
    return min(max(base + (((value - base) * factor + 32768) >> 16), 0), 255)


@_kernel
def colour(images: NDArray[np.uint8], factors: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Multiply the differences from grey (ITU-R 601) of three channels; ``factors`` in units of 2^-16."""
    count, height, width, channels = images.shape
    out = np.empty_like(images)
    for b in range(count):
        for y in range(height):
            for x in range(width):
                red, green, blue = images[b, y, x, 0], images[b, y, x, 1], images[b, y, x, 2]
                grey = (19595 * np.int64(red) + 38470 * np.int64(green) + 7471 * np.int64(blue) + 32768) >> 16
                for c in range(channels):
                    out[b, y, x, c] = _blended(grey, np.int64(images[b, y, x, c]), factors[b])
    return out


@_kernel
def sharpen(images: NDArray[np.uint8], factors: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Multiply the differences from a smoothed image; ``factors`` in units of 2^-16.

    The smoothed image is the mean of 3 x 3 pixels, the middle one counted five times; edge pixels stay.
    """
    count, height, width, channels = images.shape
    out = images.copy()
    for b in range(count):
        if factors[b] == 65536:
            continue
        for y in range(1, height - 1):
            for x in range(1, width - 1):
                for c in range(channels):
                    total = 4 * np.int64(images[b, y, x, c]) + 6
                    for dy in range(-1, 2):
                        for dx in range(-1, 2):
                            total += images[b, y + dy, x + dx, c]
                    out[b, y, x, c] = _blended(total // 13, np.int64(images[b, y, x, c]), factors[b])
    return out
