"""Local response normalisation with TensorFlow's parameters, in a few passes, with its own gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from foveal.models.layers import suits_kernels


class LocalResponseNorm(nn.Module):
    """``x / (bias + alpha * s) ** beta`` with ``s`` the sum of the squares of x and its neighbour channels.

    Computed in float32, with the parameters of ``tf.nn.local_response_normalization``; PyTorch's layer of
    this name has the mean of the squares in place of their sum. Source: Krizhevsky, Sutskever, Hinton,
    "ImageNet Classification with Deep Convolutional Neural Networks", 2012, section 3.3.

    Args:
        radius: how many channels on either side are neighbours.
        bias, alpha, beta: as above.
    """

    def __init__(self, radius: int = 5, bias: float = 1.0, alpha: float = 1.0, beta: float = 0.5) -> None:
        super().__init__()
        self.radius, self.bias, self.alpha, self.beta = radius, bias, alpha, beta

    def forward(self, images: Tensor) -> Tensor:
        """Normalise each pixel of ``[B, C, H, W]``; the result has its dtype."""
        with torch.autocast(images.device.type, enabled=False):
            normalise: Any = LocalResponse.apply
            pixels = (images if suits_kernels(images) else images.float()).permute(0, 2, 3, 1)
            normalised: Tensor = normalise(pixels, self.radius, self.bias, self.alpha, self.beta)
            return normalised.permute(0, 3, 1, 2).to(images.dtype)

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        return f"radius={self.radius}, bias={self.bias:g}, alpha={self.alpha:.4g}, beta={self.beta:g}"


class LocalResponse(torch.autograd.Function):
    """The normalisation of ``[..., C]``, and its gradient in as many passes.

    Sums over neighbours are products with a band of ones, several times quicker than a pooling over the
    channels. With ``b = bias + alpha * s``, the gradient of x is
    ``g * b ** -beta - 2 * alpha * beta * x * sum over neighbours of (g * x * b ** (-beta - 1))``.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, radius: int, bias: float, alpha: float, beta: float) -> Tensor:
        """Normalise ``values``, float ``[..., C]``."""
        ctx.parameters = radius, bias, alpha, beta
        ctx.compiled = suits_kernels(values)
        if ctx.compiled:
            normalised: Tensor
            normalised, bases = kernels().normalise(values, *ctx.parameters)
            ctx.save_for_backward(values, bases)
            return normalised
        channels = torch.arange(values.shape[-1], device=values.device)
        near = ((channels[:, None] - channels).abs() <= radius).to(values.dtype)
        bases = functional.linear(values.square(), near * alpha, values.new_full(channels.shape, bias))
        factors = _inverse_power(bases, beta)
        ctx.save_for_backward(values, near * (2 * alpha * beta), bases, factors)
        return values * factors

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of the values."""
        if ctx.compiled:
            result: Tensor = kernels().gradient(gradient, *ctx.saved_tensors, *ctx.parameters)
            return result, None, None, None, None
        values, near, bases, factors = ctx.saved_tensors
        scaled = gradient * factors
        result = torch.addcmul(scaled, values, (scaled * values / bases) @ near, value=-1)
        return result, None, None, None, None


def kernels() -> Any:
    """The module of compiled kernels; Numba takes a while to import."""
    from foveal.kernels import response_norm

    return response_norm


def _inverse_power(bases: Tensor, beta: float) -> Tensor:
    """``bases ** -beta``; by roots, which are quicker than powers, for the beta in use."""
    if beta == 0.75:
        root = bases.rsqrt()
        return root * root.sqrt()
    return bases.pow(-beta)
