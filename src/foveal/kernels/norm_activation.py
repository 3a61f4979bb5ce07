"""Batch norm and an activation on a processor: two passes over memory forward, two back.

Separately they are six: the statistics, the norm, the activation, and the gradients of each. Means and
variances are sums in float64 of sums of some hundred pixels in float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import torch

from foveal.kernels.compiled import array, clamp, kernel, narrow, wide
from foveal.kernels.threads import in_threads

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from foveal.kernels.compiled import Floats, Values

    Doubles = NDArray[np.float64]

_U = np.uintp
_BLOCK = 256  # pixels whose sums are in float32


def normalise(
    activation: str, pixels: Tensor, bias: Tensor, epsilon: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Batch norm with a scale of one, and an activation.

    Args:
        activation: one of ``ACTIVATIONS``.
        pixels: float32 or bfloat16 ``[..., C]``, contiguous.
        bias: float32 ``[C]``.
        epsilon: added to the variances.

    Returns:
        The result, like ``pixels``; in float32 the means, biased variances and inverse deviations, ``[C]``.
    """
    flat = _flat(pixels)
    # Differences from one of the pixels are small where the mean is large.
    pivot = pixels.detach().view(-1, pixels.shape[-1])[0].float().numpy()
    parts = in_threads(lambda first, last: _sums(flat, pivot, first, last), len(flat))
    first_moment, second_moment = np.sum(parts, axis=0) / len(flat)
    means = (pivot + first_moment).astype(np.float32)
    variances = np.maximum(second_moment - first_moment**2, 0)
    inverse = (1 / np.sqrt(variances + epsilon)).astype(np.float32)
    result = torch.empty_like(pixels)
    out, biases = _flat(result), bias.detach().numpy()
    forward = ACTIVATIONS[activation].forward
    in_threads(lambda first, last: forward(flat, means, inverse, biases, out, first, last), len(flat))
    tensors = [torch.from_numpy(each) for each in (means, variances.astype(np.float32), inverse)]
    return result, tensors[0], tensors[1], tensors[2]


def gradients(
    activation: str, gradient: Tensor, pixels: Tensor, means: Tensor, inverse: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradients of pixels and bias; all as :func:`normalise` has them."""
    result = torch.empty_like(pixels)
    flat, out, given = _flat(pixels), _flat(result), _flat(gradient)
    line = means.numpy(), inverse.numpy(), bias.detach().numpy()
    _, first_pass, second_pass = ACTIVATIONS[activation]
    parts = in_threads(lambda first, last: first_pass(given, flat, *line, out, first, last), len(flat))
    totals = np.sum(parts, axis=0)
    shares = (totals / len(flat)).astype(np.float32)
    in_threads(lambda first, last: second_pass(given, flat, *line, *shares, out, first, last), len(flat))
    return result, torch.from_numpy(totals[0].astype(np.float32))


def _flat(values: Tensor) -> Any:
    return array(values.view(-1, values.shape[-1]))


@kernel
def _bell(z: np.float32) -> np.float32:
    """``exp(-z * z / 2)`` to 2e-7, at least 1e-18: a power of 2 by its bits, the rest by a polynomial."""
    power = max(np.float32(-0.72134752) * z * z, np.float32(-60))
    whole = np.floor(power)
    x = power - whole
    p = np.float32(1.8951073e-3)
    p = p * x + np.float32(8.9462147e-3)
    p = p * x + np.float32(5.5863283e-2)
    p = p * x + np.float32(2.4014077e-1)
    p = p * x + np.float32(6.9315462e-1)
    p = p * x + np.float32(0.9999999)
    bits = np.int32((np.int32(whole) + np.int32(127)) << np.int32(23))
    return np.float32(p * bits.view(np.float32))


@kernel
def _share_below(z: np.float32, bell: np.float32) -> np.float32:
    """The normal distribution function to 1e-7: Abramowitz and Stegun, 7.1.26, with ``bell`` from above."""
    t = np.float32(1) / (np.float32(1) + np.float32(0.3275911 * 0.70710678) * abs(z))
    p = np.float32(0.5 * 1.061405429)
    p = p * t - np.float32(0.5 * 1.453152027)
    p = p * t + np.float32(0.5 * 1.421413741)
    p = p * t - np.float32(0.5 * 0.284496736)
    p = p * t + np.float32(0.5 * 0.254829592)
    tail = p * t * bell
    return np.float32(1) - tail if z > np.float32(0) else tail


@kernel
def _sums(pixels: Values, pivot: Floats, first: int, last: int) -> Doubles:
    """Sums and sums of squares of differences from ``pivot``, ``[2, C]``."""
    channels = pixels.shape[1]
    total = np.zeros((2, channels), np.float64)
    part = np.zeros((2, channels), np.float32)
    for start in range(first, last, _BLOCK):
        part[:] = np.float32(0)
        for pixel in range(start, min(start + _BLOCK, last)):
            for c in range(_U(channels)):
                value = wide(pixels[pixel, c]) - pivot[c]
                part[0, c] += value
                part[1, c] += value * value
        for c in range(_U(channels)):
            total[0, c] += part[0, c]
            total[1, c] += part[1, c]
    return total


@kernel
def _gelu(
    pixels: Values, means: Floats, inverse: Floats, bias: Floats, out: Values, first: int, last: int
) -> None:
    for pixel in range(first, last):
        for c in range(_U(pixels.shape[1])):
            z = (wide(pixels[pixel, c]) - means[c]) * inverse[c] + bias[c]
            out[pixel, c] = narrow(out, z * _share_below(z, _bell(z)))


@kernel
def _gelu_sums(
    gradient: Values, pixels: Values, means: Floats, inverse: Floats, bias: Floats, out: Values,
    first: int, last: int,
) -> Doubles:  # fmt: skip
    """GELU's gradient into ``out``; its sums, and those of it times what is normalised, ``[2, C]``."""
    channels = pixels.shape[1]
    total = np.zeros((2, channels), np.float64)
    part = np.zeros((2, channels), np.float32)
    for start in range(first, last, _BLOCK):
        part[:] = np.float32(0)
        for pixel in range(start, min(start + _BLOCK, last)):
            for c in range(_U(channels)):
                z = (wide(pixels[pixel, c]) - means[c]) * inverse[c] + bias[c]
                bell = _bell(z)
                slope = _share_below(z, bell) + np.float32(0.39894228) * z * bell
                out[pixel, c] = narrow(out, wide(gradient[pixel, c]) * slope)
            for c in range(_U(channels)):
                part[0, c] += wide(out[pixel, c])
            for c in range(_U(channels)):
                part[1, c] += wide(out[pixel, c]) * ((wide(pixels[pixel, c]) - means[c]) * inverse[c])
        for c in range(_U(channels)):
            total[0, c] += part[0, c]
            total[1, c] += part[1, c]
    return total


@kernel
def _gelu_gradient(
    _gradient: Values, pixels: Values, means: Floats, inverse: Floats, _bias: Floats,
    mean: Floats, slope: Floats, out: Values, first: int, last: int,
) -> None:  # fmt: skip
    """From the gradient of what is normalised to that of the pixels, in place."""
    for pixel in range(first, last):
        for c in range(_U(pixels.shape[1])):
            normalised = (wide(pixels[pixel, c]) - means[c]) * inverse[c]
            change = wide(out[pixel, c]) - mean[c] - normalised * slope[c]
            out[pixel, c] = narrow(out, change * inverse[c])


@kernel
def _relu(
    pixels: Values, means: Floats, inverse: Floats, bias: Floats, out: Values, first: int, last: int
) -> None:
    for pixel in range(first, last):
        for c in range(_U(pixels.shape[1])):
            z = (wide(pixels[pixel, c]) - means[c]) * inverse[c] + bias[c]
            out[pixel, c] = narrow(out, clamp(z, np.float32(0), np.float32(np.inf)))


@kernel
def _relu_sums(
    gradient: Values, pixels: Values, means: Floats, inverse: Floats, bias: Floats, _out: Values,
    first: int, last: int,
) -> Doubles:  # fmt: skip
    """Sums of ReLU's gradient, and of it times what is normalised, ``[2, C]``; it is made again later."""
    channels = pixels.shape[1]
    total = np.zeros((2, channels), np.float64)
    part = np.zeros((2, channels), np.float32)
    for start in range(first, last, _BLOCK):
        part[:] = np.float32(0)
        for pixel in range(start, min(start + _BLOCK, last)):
            for c in range(_U(channels)):
                normalised = (wide(pixels[pixel, c]) - means[c]) * inverse[c]
                passed = np.float32(0) if normalised + bias[c] <= np.float32(0) else wide(gradient[pixel, c])
                part[0, c] += passed
                part[1, c] += passed * normalised
        for c in range(_U(channels)):
            total[0, c] += part[0, c]
            total[1, c] += part[1, c]
    return total


@kernel
def _relu_gradient(
    gradient: Values, pixels: Values, means: Floats, inverse: Floats, bias: Floats,
    mean: Floats, slope: Floats, out: Values, first: int, last: int,
) -> None:  # fmt: skip
    for pixel in range(first, last):
        for c in range(_U(pixels.shape[1])):
            normalised = (wide(pixels[pixel, c]) - means[c]) * inverse[c]
            passed = np.float32(0) if normalised + bias[c] <= np.float32(0) else wide(gradient[pixel, c])
            out[pixel, c] = narrow(out, (passed - mean[c] - normalised * slope[c]) * inverse[c])


class Passes(NamedTuple):
    """The kernels of an activation.

    Attributes:
        forward: fills ``out``.
        sums: gives the sums of the activation's gradient; may leave that in ``out``.
        gradient: fills ``out`` with the gradient of the pixels.
    """

    forward: Any
    sums: Any
    gradient: Any


ACTIVATIONS: Final = {
    "gelu": Passes(_gelu, _gelu_sums, _gelu_gradient),
    "relu": Passes(_relu, _relu_sums, _relu_gradient),
}
