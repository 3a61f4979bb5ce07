"""Local response normalisation on a processor: one pass over memory, and one back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from foveal.kernels.compiled import array, kernel, narrow, wide
from foveal.kernels.threads import in_threads

if TYPE_CHECKING:
    from torch import Tensor

    from foveal.kernels.compiled import Floats, Values

_U = np.uintp


def normalise(values: Tensor, radius: int, bias: float, alpha: float, beta: float) -> tuple[Tensor, Tensor]:
    """What is normalised, and the bases, float32: both in the shape of ``values``, ``[..., C]``."""
    values = values.contiguous()
    normalised, bases = torch.empty_like(values), torch.empty_like(values, dtype=torch.float32)
    arrays = [_pixels(each) for each in (values, normalised, bases)]
    options = (radius, *(np.float32(each) for each in (bias, alpha, beta)))
    in_threads(lambda first, last: _normalise(*arrays, first, last, *options), len(arrays[0]))
    return normalised, bases


def gradient(
    gradients: Tensor, values: Tensor, bases: Tensor, radius: int, bias: float, alpha: float, beta: float
) -> Tensor:
    """The gradient of ``values`` from that of the result."""
    del bias  # it is in the bases
    values, gradients = values.contiguous(), gradients.contiguous()
    result = torch.empty_like(values)
    arrays = [_pixels(each) for each in (gradients, values, bases, result)]
    options = (radius, *(np.float32(each) for each in (2 * alpha * beta, beta)))
    in_threads(lambda first, last: _gradient(*arrays, first, last, *options), len(arrays[0]))
    return result


def _pixels(values: Tensor) -> Any:
    return array(values.view(-1, values.shape[-1]))


@kernel
def _sum_neighbours(padded: Floats, radius: int, sums: Floats) -> None:
    """Sums of ``2 * radius + 1`` values of ``padded``, which has ``radius`` zeros at both ends."""
    if radius == 4:  # AlexNet's, and the CIFAR-10 tutorial's: without the sums going through memory
        for c in range(_U(len(sums))):
            i = _U(c)
            near = (padded[i] + padded[i + _U(1)]) + (padded[i + _U(2)] + padded[i + _U(3)])
            far = (padded[i + _U(5)] + padded[i + _U(6)]) + (padded[i + _U(7)] + padded[i + _U(8)])
            sums[c] = (near + far) + padded[i + _U(4)]
        return
    for c in range(_U(len(sums))):
        sums[c] = padded[c]
    for shift in range(1, 2 * radius + 1):
        for c in range(_U(len(sums))):
            sums[c] += padded[c + _U(shift)]


@kernel
def _inverse_fourth_root(base: np.float32) -> np.float32:
    """``base ** -0.25`` of a number above 0 to 2e-7: a guess from its bits, and Newton's method.

    Roots and quotients would take several times as long: of their unit there is one, and it is slow.
    """
    bits = np.int32(np.int32(0x4F584000) - (np.float32(base).view(np.int32) >> np.int32(2)))
    return np.float32(_nearer(base, _nearer(base, _nearer(base, bits.view(np.float32)))))


@kernel
def _nearer(base: np.float32, root: np.float32) -> np.float32:
    square = root * root
    return np.float32(root * (np.float32(1.25) - np.float32(0.25) * base * (square * square)))


@kernel
def _powers(bases: Floats, beta: np.float32, factors: Floats, inverse: Floats) -> None:
    """``bases ** -beta``, and ``1 / bases``."""
    if beta == np.float32(0.75):
        for c in range(_U(len(bases))):
            root = _inverse_fourth_root(bases[c])
            cube = root * root * root
            factors[c] = cube
            inverse[c] = cube * root
    else:
        for c in range(_U(len(bases))):
            factors[c] = bases[c] ** -beta
            inverse[c] = np.float32(1) / bases[c]


@kernel
def _normalise(
    values: Values, normalised: Values, bases: Floats, first: int, last: int,
    radius: int, bias: np.float32, alpha: np.float32, beta: np.float32,
) -> None:  # fmt: skip
    channels = values.shape[1]
    padded = np.zeros(channels + 2 * radius, np.float32)
    sums, factors = np.empty(channels, np.float32), np.empty(channels, np.float32)
    inverse = np.empty(channels, np.float32)
    for pixel in range(first, last):
        for c in range(_U(channels)):
            value = wide(values[pixel, c])
            padded[c + _U(radius)] = value * value
        _sum_neighbours(padded, radius, sums)
        for c in range(_U(channels)):
            bases[pixel, c] = bias + alpha * sums[c]
        _powers(bases[pixel], beta, factors, inverse)
        for c in range(_U(channels)):
            normalised[pixel, c] = narrow(normalised, wide(values[pixel, c]) * factors[c])


@kernel
def _gradient(
    gradients: Values, values: Values, bases: Floats, result: Values, first: int, last: int,
    radius: int, scale: np.float32, beta: np.float32,
) -> None:  # fmt: skip
    channels = values.shape[1]
    padded = np.zeros(channels + 2 * radius, np.float32)
    sums, factors = np.empty(channels, np.float32), np.empty(channels, np.float32)
    inverse, scaled = np.empty(channels, np.float32), np.empty(channels, np.float32)
    for pixel in range(first, last):
        _powers(bases[pixel], beta, factors, inverse)
        for c in range(_U(channels)):
            scaled[c] = wide(gradients[pixel, c]) * factors[c]
            padded[c + _U(radius)] = scaled[c] * wide(values[pixel, c]) * inverse[c]
        _sum_neighbours(padded, radius, sums)
        for c in range(_U(channels)):
            result[pixel, c] = narrow(result, scaled[c] - scale * wide(values[pixel, c]) * sums[c])
