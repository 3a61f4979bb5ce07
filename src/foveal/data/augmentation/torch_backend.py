"""The torch back end: the same arithmetic as the processor kernels, on any device.

What is per image and channel (places, lines, tables) is computed by NumPy in float64, as it is for the
kernels; what is per pixel, by torch on the device. Bytes are equal, float32 is to rounding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from foveal.data.augmentation.program import (
    BRIGHTNESS,
    CLIP,
    CONTRAST,
    HUE,
    LINE,
    MIRROR,
    NOISE,
    PER_IMAGE,
    SATURATION,
    TABLE,
)
from foveal.device import find_device

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from foveal.data.augmentation.program import Drawn, Finish, Program


class TorchBackend:
    """Torch operations on tensors of a device.

    Args:
        device: ``cpu``, ``cuda``, ``mps``, ...

    Raises:
        UsageError: there is no such device.
    """

    def __init__(self, device: str = "cpu") -> None:
        self._device = find_device(device)
        self._double = torch.float32 if self._device.type == "mps" else torch.float64  # Metal has no float64

    def put(self, images: NDArray[Any] | Tensor) -> Tensor:
        """On the device: a copy of an array, a tensor itself."""
        if isinstance(images, torch.Tensor):
            return images.to(self._device)
        return torch.tensor(images, device=self._device)

    def host(self, images: Tensor) -> NDArray[Any]:
        """A NumPy array."""
        return images.cpu().numpy()

    def move(self, images: Tensor, program: Program, drawn: Drawn) -> Tensor:
        """A segment without colours."""
        if len(program.moves):
            rows, columns = (places(program, drawn.values, axis) for axis in range(2))
            images = self._gather(images, rows, columns)
        for row, mean in program.boxes.tolist():
            images = self._erase(images, drawn.values[row : row + 4], bool(mean))
        return images

    def distort(self, images: Tensor, program: Program, drawn: Drawn, finish: Finish) -> Tensor:
        """A whole segment."""
        images = self.move(images, program, drawn)
        count, channels = len(images), images.shape[3]
        if finish.kind == TABLE:
            return self.put(finish.table)[torch.arange(channels, device=self._device), images.long()]
        images = images.to(torch.float32)
        line = np.zeros((count, 2, channels))
        line[:, 0] = 1
        for p in range(len(program.colours)):
            for i in np.unique(drawn.order[:, p]).tolist():
                code, row, word = program.colours[i].tolist()
                value = drawn.values[row]
                chosen = (drawn.order[:, p] == i) & ~np.isnan(value)
                words = drawn.words[word] if code == NOISE else None
                images = self._colour(images, line, code, value, words, chosen, program.quantiles)
        if finish.kind == PER_IMAGE:
            line = _standardized(line, *self._sums(images), images[0, :, :, 0].numel() if count else 1)
        elif finish.kind == LINE:
            line = np.stack(
                [line[:, 0] * finish.line[0], line[:, 1] * finish.line[0] + finish.line[1]], axis=1
            )
        return self._apply(images, line)

    def affine(self, images: Tensor, matrices: NDArray[np.int64]) -> Tensor:
        """Bilinear resampling in fixed point."""
        _, height, width, _ = images.shape
        m = self.put(matrices)[:, :, :, None, None]
        y = torch.arange(height, device=self._device)[:, None]
        x = torch.arange(width, device=self._device)
        fixed_x, fixed_y = (m[:, i, 0] * x + m[:, i, 1] * y + m[:, i, 2] for i in range(2))
        total = torch.full((), 32768, device=self._device)
        for dy in range(2):
            for dx in range(2):
                column, row = (fixed_x >> 16) + dx, (fixed_y >> 16) + dy
                weight_x, weight_y = (fixed_x >> 8) & 255, (fixed_y >> 8) & 255
                weight = (weight_x if dx else 256 - weight_x) * (weight_y if dy else 256 - weight_y)
                inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
                picked = self._pick(images, row.clamp(0, height - 1), column.clamp(0, width - 1))
                total = total + picked.long() * (weight * inside)[..., None]
        return (total >> 16).to(torch.uint8)

    def resize(
        self,
        images: Tensor,
        tops: NDArray[np.int64],
        vertical: NDArray[np.int32],
        lefts: NDArray[np.int64],
        horizontal: NDArray[np.int32],
    ) -> Tensor:
        """Weighted sums along rows, rounded to bytes, then along columns."""
        narrow = self._weighted(images.transpose(1, 2), lefts, horizontal).transpose(1, 2)
        return self._weighted(narrow, tops, vertical)

    def histogram(self, images: Tensor) -> NDArray[np.int64]:
        """How often each byte occurs in each channel."""
        count, _, _, channels = images.shape
        row = torch.arange(count * channels, device=self._device).reshape(count, 1, 1, channels) * 256
        counts = torch.bincount((row + images).flatten(), minlength=count * channels * 256)
        return self.host(counts).reshape(count, channels, 256)

    def look_up(self, images: Tensor, tables: NDArray[np.uint8]) -> Tensor:
        """Replace bytes by others."""
        count, channels, _ = tables.shape
        b = torch.arange(count, device=self._device)[:, None, None, None]
        return self.put(tables)[b, torch.arange(channels, device=self._device), images.long()]

    def colour(self, images: Tensor, factors: NDArray[np.int64]) -> Tensor:
        """Towards grey, or away from it."""
        red, green, blue = images.to(torch.int64).unbind(3)
        grey = (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16
        return self._blended(grey[..., None], images, factors)

    def sharpen(self, images: Tensor, factors: NDArray[np.int64]) -> Tensor:
        """Towards a smoothed image, or away from it."""
        _, height, width, _ = images.shape
        if height < 3 or width < 3:
            return images
        wide = images.to(torch.int64)
        around = sum(wide[:, dy : height - 2 + dy, dx : width - 2 + dx] for dy in range(3) for dx in range(3))
        inner = images[:, 1:-1, 1:-1]
        out = images.clone()
        smooth = (around + 4 * inner.to(torch.int64) + 6) // 13
        out[:, 1:-1, 1:-1] = self._blended(smooth, inner, factors)
        return out

    def _blended(self, base: Tensor, images: Tensor, factors: NDArray[np.int64]) -> Tensor:
        factor = self.put(factors)[:, None, None, None]
        moved = base + (((images.to(torch.int64) - base) * factor + 32768) >> 16)
        return moved.clamp(0, 255).to(torch.uint8)

    def _pick(self, images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """Pixels at ``rows`` and ``columns``, which broadcast to ``[B, H, W]``."""
        return images[torch.arange(len(images), device=self._device)[:, None, None], rows, columns]

    def _gather(self, images: Tensor, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> Tensor:
        """Whole pixels; zeros where a place is -1."""
        y, x = self.put(rows)[:, :, None], self.put(columns)[:, None, :]
        inside = ((y >= 0) & (x >= 0))[..., None]
        return self._pick(images, y.clamp(min=0), x.clamp(min=0)) * inside

    def _erase(self, images: Tensor, box: NDArray[np.float64], mean: bool) -> Tensor:
        """Overwrite rectangles ``[4, B]``; NaN: none. Of bytes, the mean is rounded half up."""
        _, height, width, _ = images.shape
        place = np.nan_to_num(box).astype(np.int64)
        top, left, tall, wide = self.put(place)[:, :, None, None]
        tall = tall * self.put(~np.isnan(box[0]))[:, None, None]
        y = torch.arange(height, device=self._device)[:, None]
        x = torch.arange(width, device=self._device)
        inside = ((y >= top) & (y < top + tall) & (x >= left) & (x < left + wide))[..., None]
        fill = torch.zeros((), dtype=images.dtype, device=self._device)
        if mean:
            exact = images.sum((1, 2), keepdim=True, dtype=self._double) / (height * width)
            fill = (exact if images.dtype.is_floating_point else (exact + 0.5).floor()).to(images.dtype)
        return torch.where(inside, fill, images)

    def _weighted(self, images: Tensor, first: NDArray[np.int64], weights: NDArray[np.int32]) -> Tensor:
        """Weighted sums along the second axis, rounded to bytes."""
        begin = self.put(first).expand(len(images), -1)
        shares = self.put(weights).expand(len(images), -1, -1)
        b = torch.arange(len(images), device=self._device)[:, None]
        total = torch.full((), 1 << 21, dtype=torch.int32, device=self._device)
        for k in range(weights.shape[2]):
            total = total + images[b, begin + k].to(torch.int32) * shares[:, :, k, None, None]
        return (total >> 22).clamp(0, 255).to(torch.uint8)

    def _sums(self, images: Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Each channel's sum and sum of squares, float64 ``[B, C]``."""
        wide = images.to(self._double)
        sums, squares = wide.sum((1, 2)), (wide * wide).sum((1, 2))
        return self.host(sums).astype(np.float64), self.host(squares).astype(np.float64)

    def _apply(self, images: Tensor, line: NDArray[np.float64]) -> Tensor:
        """``line[:, 0] * x + line[:, 1]``; see ``kernels._apply`` for the centre."""
        slope, offset = line[:, 0], line[:, 1]
        zero = np.divide(-offset, slope, out=np.zeros_like(slope), where=slope > 1e-6)
        centre = np.rint(np.clip(zero, 0, 255))
        parts = np.stack([centre, slope, offset + slope * centre]).astype(np.float32)
        middle, factor, rest = self.put(parts)[:, :, None, None, :].unbind()
        return (images - middle) * factor + rest

    def _colour(
        self,
        images: Tensor,
        line: NDArray[np.float64],
        code: int,
        value: NDArray[np.float64],
        words: NDArray[np.uint64] | None,
        chosen: NDArray[np.bool_],
        quantiles: NDArray[np.float32],
    ) -> Tensor:
        """One operation on the chosen images; ``line``, ``[B, 2, C]``, is changed in place."""
        if not chosen.any():
            return images
        if code == BRIGHTNESS:
            line[chosen, 1] += value[chosen, None]
            return images
        if code == CONTRAST:
            mean = line[:, 0] * self._sums(images)[0] / images[0, :, :, 0].numel() + line[:, 1]
            factor = value[chosen, None]
            line[chosen, 0] *= factor
            line[chosen, 1] = line[chosen, 1] * factor + mean[chosen] * (1 - factor)
            return images
        changed = self._apply(images, line)
        parameter = self.put(np.nan_to_num(value).astype(np.float32))[:, None, None, None]
        if code == SATURATION:
            changed = saturate(changed, parameter)
        elif code == HUE:
            changed = turn_hue(
                changed, self.put(np.nan_to_num(value * 6).astype(np.float32))[:, None, None, None]
            )
        elif code == CLIP:
            changed = changed.clamp(0, 255)
        elif words is not None:
            changed = changed + parameter * self._noise(words, changed.shape, quantiles)
        line[chosen, 0], line[chosen, 1] = 1, 0
        return torch.where(self.put(chosen)[:, None, None, None], changed, images)

    def _noise(self, words: NDArray[np.uint64], shape: torch.Size, quantiles: NDArray[np.float32]) -> Tensor:
        """SplitMix64 from each image's word on; each of its numbers gives four values of the flat image."""
        size = shape[1:].numel()
        counter = torch.arange(1, (size + 3) // 4 + 1, device=self._device) * _signed(0x9E3779B97F4A7C15)
        hashed = _mix(self.put(words.view(np.int64))[:, None] + counter)
        parts = torch.stack([(hashed >> shift) & 0xFFFF for shift in (0, 16, 32, 48)], dim=2)
        return self.put(quantiles)[parts.flatten(1)[:, :size]].reshape(shape)


def places(program: Program, values: NDArray[np.float64], axis: int) -> NDArray[np.int64]:
    """Which row (axis 0) or column (axis 1) of the image each one of the result shows; -1: none."""
    extent = program.width if axis else program.height
    out = np.broadcast_to(np.arange(extent), (values.shape[1], extent)).copy()
    for code, row, sign, reflect, *extents in reversed(program.moves.tolist()):
        size = extents[axis]
        if code == MIRROR:
            mirrored = (values[row] < values[row + 1])[:, None] & bool(axis) & (out >= 0)
            out = np.where(mirrored, size - 1 - out, out)
            continue
        moved = out + sign * values[row + axis].astype(np.int64)[:, None]
        if reflect:
            moved = np.abs(moved)
            moved = np.minimum(moved, 2 * size - 2 - moved)
        out = np.where((out >= 0) & (moved >= 0) & (moved < size), moved, -1)
    return out


def saturate(images: Tensor, factor: Tensor) -> Tensor:
    """Saturation times ``factor``, hue and value kept.

    In HSV, value is the largest channel and saturation is (largest - smallest) / largest, at most 1. So every
    channel's distance from the largest is multiplied, by the factor or as far as saturation 1.
    """
    most, least = images.amax(3, keepdim=True), images.amin(3, keepdim=True)
    spread = most - least
    share = torch.where(spread > 0, torch.minimum(factor, most / spread), factor)
    return most - (most - images) * torch.where(most > 0, share, 0)


def turn_hue(images: Tensor, turn: Tensor) -> Tensor:
    """Hue turned by ``turn`` sixths of the circle; the largest and smallest channel stay."""
    most, least = images.amax(3, keepdim=True), images.amin(3, keepdim=True)
    spread = most - least
    red, green, blue = images.unsqueeze(3).unbind(4)
    steps = torch.where(spread > 0, spread, 1)
    hue = torch.where(
        red == most,
        (green - blue) / steps,
        torch.where(green == most, 2 + (blue - red) / steps, 4 + (red - green) / steps),
    )
    hue = hue + turn
    hue = hue - 6 * (hue / 6).floor()
    distance = (hue - torch.arange(0, 6, 2, device=images.device)).abs()
    distance = torch.minimum(distance, 6 - distance)
    return torch.where(spread > 0, least + spread * (2 - distance).clamp(0, 1), images)


def _standardized(
    line: NDArray[np.float64], sums: NDArray[np.float64], squares: NDArray[np.float64], count: int
) -> NDArray[np.float64]:
    """``line``, then (x - mean) / max(deviation, 1 / sqrt(values)) of whole images of ``count`` pixels."""
    slope, means = line[:, 0], sums / count
    channel_means = slope * means + line[:, 1]
    mean = channel_means.mean(axis=1, keepdims=True)
    spread = np.maximum(squares / count - means**2, 0)
    variance = (slope**2 * spread + (channel_means - mean) ** 2).mean(axis=1, keepdims=True)
    deviation = np.maximum(np.sqrt(variance), 1 / np.sqrt(count * line.shape[2]))
    return np.stack([slope / deviation, (line[:, 1] - mean) / deviation], axis=1)


def _signed(word: int) -> int:
    """The same 64 bits as a signed integer."""
    return word - (1 << 64)


def _mix(value: Tensor) -> Tensor:
    """SplitMix64's finalizer on int64, whose shifts keep the sign: the bits that come in are cleared."""
    value = (value ^ ((value >> 30) & ((1 << 34) - 1))) * _signed(0xBF58476D1CE4E5B9)
    value = (value ^ ((value >> 27) & ((1 << 37) - 1))) * _signed(0x94D049BB133111EB)
    return value ^ ((value >> 31) & ((1 << 33) - 1))
