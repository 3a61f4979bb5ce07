"""The fused processor kernel: moves, erases, changes colours and normalises, an image at a time, in one call.

Compiled by Numba once and kept on disk. ``nogil`` and not ``parallel``: the loader's threads are the
parallelism. Brightness, contrast and normalisation are lines ``slope * x + offset`` for each channel, whose
coefficients follow from the sums of the pixels and of their squares; they are joined, and the pixels
written once. Only what is no line (saturation, hue, noise, clipping) makes a float32 image in between.

The layout is ``[B, H, W * C]``: a row is flat, so that loops over it become vector instructions. All that
calls each other stands in this file, because Numba recompiles a function only when its own file has
changed.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numba
import numpy as np

from foveal.data.augmentation.program import (
    BRIGHTNESS,
    CLIP,
    CONTRAST,
    HUE,
    MIRROR,
    NOISE,
    PER_IMAGE,
    SATURATION,
)
from foveal.data.augmentation.program import LINE as _LINE
from foveal.seeding_kernels import mix

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8] | NDArray[np.float32]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    return numba.njit(nogil=True, cache=True, boundscheck=False)(function)


@_kernel
def _trace(
    moves: NDArray[np.int64], values: NDArray[np.float64], b: int, axis: int, places: NDArray[np.int64]
) -> None:
    """Which row (axis 0) or column (axis 1) of the image each one of the result shows; -1: none."""
    for j in range(len(places)):
        places[j] = j
    for m in range(len(moves) - 1, -1, -1):
        code, row, sign, reflect = moves[m, 0], moves[m, 1], moves[m, 2], moves[m, 3]
        extent = moves[m, 4 + axis]
        if code == MIRROR:
            if axis == 1 and values[row, b] < values[row + 1, b]:
                for j in range(len(places)):
                    places[j] = extent - 1 - places[j] if places[j] >= 0 else -1
            continue
        shift = sign * np.int64(values[row + axis, b])
        for j in range(len(places)):
            place = places[j] + shift
            if reflect:
                place = abs(place)
                place = min(place, 2 * extent - 2 - place)
            inside = (places[j] >= 0) & (place >= 0) & (place < extent)
            places[j] = place if inside else -1


@_kernel
def _runs(places: NDArray[np.int64], step: int) -> bool:
    """Whether each place is ``step`` from the one before, and all exist."""
    unbroken = True
    for j in range(len(places)):
        unbroken &= (places[j] >= 0) & (places[j] == places[0] + step * j)
    return unbroken


@_kernel
def _pick(image: Pixels, row: int, columns: NDArray[np.int64], channels: int, out: Pixels, y: int) -> None:
    """Fill row ``y`` of ``out`` with any columns of a row of ``image``."""
    step = np.uintp(channels)
    for x in range(len(columns)):
        source, target = np.uintp(max(columns[x], 0)) * step, np.uintp(x) * step
        exists = columns[x] >= 0
        if channels == 3:
            red, green = image[row, source], image[row, source + np.uintp(1)]
            blue = image[row, source + np.uintp(2)]
            out[y, target] = red if exists else 0
            out[y, target + np.uintp(1)] = green if exists else 0
            out[y, target + np.uintp(2)] = blue if exists else 0
        else:
            for c in range(step):
                out[y, target + c] = image[row, source + c] if exists else 0


@_kernel
def _gather(
    image: Pixels, rows: NDArray[np.int64], columns: NDArray[np.int64], channels: int, out: Pixels
) -> None:
    """Fill ``out`` with the rows and columns of ``image``; zeros where there are none.

    Unsigned indices save the test for negative ones, without which the loops become vector instructions.
    """
    forward, backward = _runs(columns, 1), _runs(columns, -1)
    begin = np.uintp(max(columns[0], 0))
    for y in range(len(rows)):
        row = np.uintp(max(rows[y], 0))
        if rows[y] < 0:
            for j in range(out.shape[1]):
                out[y, j] = 0
        elif forward:
            for j in range(out.shape[1]):
                out[y, j] = image[row, begin * np.uintp(channels) + np.uintp(j)]
        elif backward and channels == 3:
            for x in range(len(columns)):
                source, target = (begin - np.uintp(x)) * np.uintp(3), np.uintp(x) * np.uintp(3)
                out[y, target] = image[row, source]
                out[y, target + np.uintp(1)] = image[row, source + np.uintp(1)]
                out[y, target + np.uintp(2)] = image[row, source + np.uintp(2)]
        else:
            _pick(image, row, columns, channels, out, y)


@_kernel
def _erase(
    image: Pixels, channels: int, boxes: NDArray[np.int64], values: NDArray[np.float64], b: int
) -> None:
    """Overwrite rectangles; of bytes, the mean is rounded half up."""
    height, width = len(image), image.shape[1] // channels
    for e in range(len(boxes)):
        row, mean = boxes[e, 0], boxes[e, 1]
        if math.isnan(values[row, b]):
            continue
        top, left = int(values[row, b]), int(values[row + 1, b])
        bottom, right = top + int(values[row + 2, b]), left + int(values[row + 3, b])
        for c in range(channels):
            fill = 0.0
            if mean:
                for y in range(height):
                    for x in range(width):
                        fill += image[y, x * channels + c]
                fill /= height * width
                if image.itemsize == 1:
                    fill = math.floor(fill + 0.5)
            for y in range(max(0, top), min(height, bottom)):
                for x in range(max(0, left), min(width, right)):
                    image[y, x * channels + c] = fill


@_kernel
def _move(
    image: Pixels,
    channels: int,
    values: NDArray[np.float64],
    moves: NDArray[np.int64],
    boxes: NDArray[np.int64],
    b: int,
    rows: NDArray[np.int64],
    columns: NDArray[np.int64],
    out: Pixels,
) -> None:
    _trace(moves, values, b, 0, rows)
    _trace(moves, values, b, 1, columns)
    _gather(image, rows, columns, channels, out)
    _erase(out, channels, boxes, values, b)


@_kernel
def move(
    images: Pixels,
    channels: int,
    values: NDArray[np.float64],
    moves: NDArray[np.int64],
    boxes: NDArray[np.int64],
    height: int,
    width: int,
) -> Pixels:
    """Move and erase whole pixels of ``[B, H, W * C]``; see ``Program``."""
    out = np.empty((len(images), height, width * channels), images.dtype)
    rows, columns = np.empty(height, np.int64), np.empty(width, np.int64)
    for b in range(len(images)):
        _move(images[b], channels, values, moves, boxes, b, rows, columns, out[b])
    return out


@_kernel
def _fill(rows: Any, first: float, second: float) -> None:
    """Fill the two rows of an array, each with one number; by hand, as slices take long to compile."""
    for j in range(rows.shape[1]):
        rows[0, j] = first
        rows[1, j] = second


@_kernel
def _sum_lanes(lanes: Any, sums: NDArray[np.float64]) -> None:
    """Add sums of single values of the rows, ``[2, W * C]``, to those of their channels."""
    channels = sums.shape[1]
    for c in range(channels):
        for j in range(c, lanes.shape[1], channels):
            sums[0, c] += lanes[0, j]
            sums[1, c] += lanes[1, j]


@_kernel
def _sum(image: Pixels, sums: NDArray[np.float64], lanes: NDArray[np.int32]) -> None:
    """Each channel's sum and sum of squares, into float64 ``[2, C]``; exact for bytes."""
    _fill(sums, 0.0, 0.0)
    if image.itemsize == 1:
        for top in range(0, len(image), 32768):  # as many squares of bytes fit in 31 bits
            _fill(lanes, 0, 0)
            for y in range(top, min(top + 32768, len(image))):
                for j in range(image.shape[1]):
                    byte = np.int32(image[y, j])
                    lanes[0, j] += byte
                    lanes[1, j] += byte * byte
            _sum_lanes(lanes, sums)
    else:
        wide = np.zeros(lanes.shape, np.float64)
        for y in range(len(image)):
            for j in range(image.shape[1]):
                value = np.float64(image[y, j])
                wide[0, j] += value
                wide[1, j] += value * value
        _sum_lanes(wide, sums)


@_kernel
def _apply(image: Pixels, line: NDArray[np.float64], pattern: NDArray[np.float32], out: Any) -> None:
    """Write ``line[0] * x + line[1]`` of each channel.

    Computed as slope * (x - centre) + rest, with a whole number near the zero of the line as centre: where
    little varies and the slope is steep, large numbers would cancel and leave their rounding errors.
    """
    channels = line.shape[1]
    for c in range(channels):
        slope, offset = line[0, c], line[1, c]
        centre = 0.0
        if slope > 1e-6:
            centre = np.rint(min(max(-offset / slope, 0.0), 255.0))
        rest = offset + slope * centre
        for x in range(c, pattern.shape[1], channels):
            pattern[0, x] = centre
            pattern[1, x] = slope
            pattern[2, x] = rest
    for y in range(len(image)):
        for j in range(image.shape[1]):
            out[y, j] = (np.float32(image[y, j]) - pattern[0, j]) * pattern[1, j] + pattern[2, j]


@_kernel
def _saturate(image: NDArray[np.float32], factor: np.float32) -> None:
    """Bring each pixel's channels nearer to their largest, or away; see ``saturate`` of the torch kernels."""
    for y in range(len(image)):
        for x in range(0, image.shape[1], 3):
            red, green, blue = image[y, x], image[y, x + 1], image[y, x + 2]
            most = max(red, green, blue)
            spread = most - min(red, green, blue)
            share = min(factor, most / spread) if spread > 0 else factor
            if most <= 0:
                share = np.float32(0)
            image[y, x] = most - (most - red) * share
            image[y, x + 1] = most - (most - green) * share
            image[y, x + 2] = most - (most - blue) * share


@_kernel
def _ramp(distance: np.float32) -> np.float32:
    """1 within a sixth of the circle, 0 beyond two sixths; ``distance`` in sixths, in (-6, 6)."""
    distance = abs(distance)
    distance = min(distance, np.float32(6) - distance)
    return min(max(np.float32(2) - distance, np.float32(0)), np.float32(1))


@_kernel
def _turn(image: NDArray[np.float32], turn: np.float32) -> None:
    """Turn each pixel's hue by ``turn`` sixths of the circle; the largest and smallest channel stay."""
    for y in range(len(image)):
        for x in range(0, image.shape[1], 3):
            red, green, blue = image[y, x], image[y, x + 1], image[y, x + 2]
            most, least = max(red, green, blue), min(red, green, blue)
            spread = most - least
            if spread <= 0:
                continue
            if red == most:
                hue = (green - blue) / spread
            elif green == most:
                hue = np.float32(2) + (blue - red) / spread
            else:
                hue = np.float32(4) + (red - green) / spread
            hue += turn
            hue -= np.float32(6) * np.floor(hue / np.float32(6))
            image[y, x] = least + spread * _ramp(hue)
            image[y, x + 1] = least + spread * _ramp(hue - np.float32(2))
            image[y, x + 2] = least + spread * _ramp(hue - np.float32(4))


@_kernel
def _add_noise(
    image: NDArray[np.float32], deviation: np.float32, word: np.uint64, quantiles: NDArray[np.float32]
) -> None:
    """SplitMix64 from ``word`` on; each of its numbers gives four values of the flat image."""
    flat = image.reshape(-1)
    for i in range(0, len(flat), 4):
        hashed = mix(word + np.uint64(i // 4 + 1) * _GOLDEN)
        for j in range(i, min(i + 4, len(flat))):
            flat[j] += deviation * quantiles[hashed & np.uint64(0xFFFF)]
            hashed >>= np.uint64(16)


@_kernel
def _change(image: NDArray[np.float32], code: int, value: float, word: np.uint64, quantiles: Any) -> None:
    """An operation that is not a line, in place."""
    if code == SATURATION:
        _saturate(image, np.float32(value))
    elif code == HUE:
        _turn(image, np.float32(value * 6))
    elif code == NOISE:
        _add_noise(image, np.float32(value), word, quantiles)
    elif code == CLIP:
        for y in range(len(image)):
            for j in range(image.shape[1]):
                image[y, j] = min(max(image[y, j], np.float32(0)), np.float32(255))


@_kernel
def _colour(
    base: Pixels,
    floats: NDArray[np.float32],
    colours: NDArray[np.int64],
    order: NDArray[np.int64],
    values: NDArray[np.float64],
    words: NDArray[np.uint64],
    quantiles: NDArray[np.float32],
    b: int,
    line: NDArray[np.float64],
    sums: NDArray[np.float64],
    lanes: NDArray[np.int32],
    pattern: NDArray[np.float32],
) -> tuple[bool, bool]:
    """Do all operations of one image but the last ``line``: is that for ``floats``; are its sums known."""
    channels = line.shape[1]
    count = base.size // channels
    floating, summed = False, False
    for p in range(len(colours)):
        code, row, word = colours[order[p], 0], colours[order[p], 1], colours[order[p], 2]
        value = values[row, b]
        if math.isnan(value):
            continue
        if code == BRIGHTNESS:
            for c in range(channels):
                line[1, c] += value
        elif code == CONTRAST:
            if not summed:
                if floating:
                    _sum(floats, sums, lanes)
                else:
                    _sum(base, sums, lanes)
                summed = True
            for c in range(channels):
                mean = line[0, c] * sums[0, c] / count + line[1, c]
                line[0, c] *= value
                line[1, c] = line[1, c] * value + mean * (1 - value)
        else:
            if floating:
                _apply(floats, line, pattern, floats)
            else:
                _apply(base, line, pattern, floats)
            _change(floats, code, value, words[word, b] if code == NOISE else np.uint64(0), quantiles)
            _fill(line, 1.0, 0.0)
            floating, summed = True, False
    return floating, summed


@_kernel
def _standardize(line: NDArray[np.float64], sums: NDArray[np.float64], count: int) -> None:
    """Append (x - mean) / max(deviation, 1 / sqrt(values)) of the whole image; ``count`` pixels."""
    channels = line.shape[1]
    mean = 0.0
    for c in range(channels):
        mean += (line[0, c] * sums[0, c] / count + line[1, c]) / channels
    variance = 0.0
    for c in range(channels):
        channel_mean = sums[0, c] / count
        spread = max(sums[1, c] / count - channel_mean * channel_mean, 0.0)
        apart = line[0, c] * channel_mean + line[1, c] - mean
        variance += (line[0, c] * line[0, c] * spread + apart * apart) / channels
    deviation = max(math.sqrt(variance), 1 / math.sqrt(count * channels))
    for c in range(channels):
        line[0, c] /= deviation
        line[1, c] = (line[1, c] - mean) / deviation


@_kernel
def _finish(
    base: Pixels,
    kind: int,
    last: NDArray[np.float64],
    line: NDArray[np.float64],
    summed: bool,
    sums: NDArray[np.float64],
    lanes: NDArray[np.int32],
    pattern: NDArray[np.float32],
    out: NDArray[np.float32],
) -> None:
    """Write one image as the network sees it."""
    channels = line.shape[1]
    if kind == PER_IMAGE:
        if not summed:
            _sum(base, sums, lanes)
        _standardize(line, sums, base.size // channels)
    elif kind == _LINE:
        for c in range(channels):
            line[0, c] *= last[0, c]
            line[1, c] = line[1, c] * last[0, c] + last[1, c]
    _apply(base, line, pattern, out)


@_kernel
def distort(
    images: Pixels,
    channels: int,
    values: NDArray[np.float64],
    words: NDArray[np.uint64],
    order: NDArray[np.int64],
    moves: NDArray[np.int64],
    boxes: NDArray[np.int64],
    colours: NDArray[np.int64],
    height: int,
    width: int,
    kind: int,
    last: NDArray[np.float64],
    quantiles: NDArray[np.float32],
) -> NDArray[np.float32]:
    """A whole segment of ``[B, H, W * C]``, see ``Program``, ``Drawn`` and ``Finish``; gives float32."""
    out = np.empty((len(images), height, width * channels), np.float32)
    rows, columns = np.empty(height, np.int64), np.empty(width, np.int64)
    moved = np.empty((height, width * channels), images.dtype)
    floats = np.empty((height, width * channels), np.float32)
    line, sums = np.empty((2, channels)), np.empty((2, channels))
    pattern, lanes = np.empty((3, width * channels), np.float32), np.empty((2, width * channels), np.int32)
    for b in range(len(images)):
        base = images[b]
        if len(moves) or len(boxes):
            _move(base, channels, values, moves, boxes, b, rows, columns, moved)
            base = moved
        _fill(line, 1.0, 0.0)
        ordered = order[b if len(order) > 1 else 0]
        floating, summed = _colour(
            base, floats, colours, ordered, values, words, quantiles, b, line, sums, lanes, pattern
        )
        if floating:
            _finish(floats, kind, last, line, summed, sums, lanes, pattern, out[b])
        else:
            _finish(base, kind, last, line, summed, sums, lanes, pattern, out[b])
    return out


@_kernel
def normalize(images: NDArray[np.uint8], table: NDArray[np.float32]) -> NDArray[np.float32]:
    """Look up the bytes of ``[B, H, W * C]`` in ``table``, float32 ``[C, 256]``."""
    out = np.empty(images.shape, np.float32)
    for b in range(len(images)):
        for y in range(images.shape[1]):
            if len(table) == 1:
                for j in range(images.shape[2]):
                    out[b, y, j] = table[0, np.uint8(images[b, y, j])]
            elif len(table) == 3:
                for x in range(images.shape[2] // 3):
                    at = np.uintp(x) * np.uintp(3)
                    out[b, y, at] = table[0, np.uint8(images[b, y, at])]
                    out[b, y, at + np.uintp(1)] = table[1, np.uint8(images[b, y, at + np.uintp(1)])]
                    out[b, y, at + np.uintp(2)] = table[2, np.uint8(images[b, y, at + np.uintp(2)])]
            else:
                for j in range(images.shape[2]):
                    out[b, y, j] = table[j % len(table), np.uint8(images[b, y, j])]
    return out
