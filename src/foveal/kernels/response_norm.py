"""Local response normalisation of float32 pixels on a processor: one pass over memory, and one back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numba
import numpy as np
import torch

from foveal.kernels.threads import in_threads

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from torch import Tensor

    Floats = NDArray[np.float32]

_U = np.uintp


def normalise(values: Tensor, radius: int, bias: float, alpha: float, beta: float) -> tuple[Tensor, Tensor]:
    """What is normalised, and the bases: both in the shape of ``values``, ``[..., C]``."""
    values = values.contiguous()
    normalised, bases = torch.empty_like(values), torch.empty_like(values)
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
    return values.detach().view(-1, values.shape[-1]).numpy()


def _kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    return numba.njit(nogil=True, cache=True, boundscheck=False, fastmath={"contract"}, error_model="numpy")(
        function
    )


@_kernel
def _sum_neighbours(padded: Floats, radius: int, sums: Floats) -> None:
    """Sums of ``2 * radius + 1`` values of ``padded``, which has ``radius`` zeros at both ends."""
    for c in range(_U(len(sums))):
        sums[c] = padded[c]
    for shift in range(1, 2 * radius + 1):
        for c in range(_U(len(sums))):
            sums[c] += padded[c + _U(shift)]


@_kernel
def _factors(bases: Floats, beta: np.float32, factors: Floats) -> None:
    """``bases ** -beta``; roots become vector instructions, and powers do not."""
    if beta == np.float32(0.75):
        for c in range(_U(len(bases))):
            root = np.sqrt(bases[c])
            factors[c] = np.float32(1) / (root * np.sqrt(root))
    else:
        for c in range(_U(len(bases))):
            factors[c] = bases[c] ** -beta


@_kernel
def _normalise(
    values: Floats, normalised: Floats, bases: Floats, first: int, last: int,
    radius: int, bias: np.float32, alpha: np.float32, beta: np.float32,
) -> None:  # fmt: skip
    channels = values.shape[1]
    padded = np.zeros(channels + 2 * radius, np.float32)
    sums, factors = np.empty(channels, np.float32), np.empty(channels, np.float32)
    for pixel in range(first, last):
        for c in range(_U(channels)):
            padded[c + _U(radius)] = values[pixel, c] * values[pixel, c]
        _sum_neighbours(padded, radius, sums)
        for c in range(_U(channels)):
            bases[pixel, c] = bias + alpha * sums[c]
        _factors(bases[pixel], beta, factors)
        for c in range(_U(channels)):
            normalised[pixel, c] = values[pixel, c] * factors[c]


@_kernel
def _gradient(
    gradients: Floats, values: Floats, bases: Floats, result: Floats, first: int, last: int,
    radius: int, scale: np.float32, beta: np.float32,
) -> None:  # fmt: skip
    channels = values.shape[1]
    padded = np.zeros(channels + 2 * radius, np.float32)
    sums, factors = np.empty(channels, np.float32), np.empty(channels, np.float32)
    for pixel in range(first, last):
        _factors(bases[pixel], beta, factors)
        for c in range(_U(channels)):
            scaled = gradients[pixel, c] * factors[c]
            result[pixel, c] = scaled
            padded[c + _U(radius)] = scaled * values[pixel, c] / bases[pixel, c]
        _sum_neighbours(padded, radius, sums)
        for c in range(_U(channels)):
            result[pixel, c] -= scale * values[pixel, c] * sums[c]
