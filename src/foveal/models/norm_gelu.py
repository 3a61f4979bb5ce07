"""Batch norm without a learnt scale, and GELU after it, in two passes where a processor trains them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from foveal.models.layers import FixedScaleBatchNorm2d, suits_kernels


class NormGelu(FixedScaleBatchNorm2d):
    """This batch norm and then GELU; arguments, tensors and running statistics are the norm's."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name is PyTorch's
        """Normalise ``[B, C, H, W]``, in training by the batch, and activate."""
        several = input.numel() > input.shape[1]
        if not (self.training and self.momentum is not None and several and suits_kernels(input)):
            return functional.gelu(super().forward(input))
        apply: Any = _NormGelu.apply
        result, means, variances = apply(input.permute(0, 2, 3, 1).contiguous(), self.bias, self.eps)
        with torch.no_grad():
            count = input.numel() // input.shape[1]
            self.running_mean.lerp_(means, self.momentum)  # type: ignore[union-attr]
            self.running_var.lerp_(variances * (count / (count - 1)), self.momentum)  # type: ignore[union-attr]
            self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
        activated: Tensor = result.permute(0, 3, 1, 2)
        return activated


class _NormGelu(torch.autograd.Function):
    """From pixels ``[..., C]`` and a bias to what is activated, and the batch's means and variances."""

    @staticmethod
    def forward(ctx: Any, pixels: Tensor, bias: Tensor, epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
        result, means, variances, inverse = _kernels().normalise(pixels, bias, epsilon)
        ctx.save_for_backward(pixels, means, inverse, bias)
        ctx.mark_non_differentiable(means, variances)
        return result, means, variances

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, None]:
        pixels, bias = _kernels().gradients(gradient.contiguous(), *ctx.saved_tensors)
        return pixels, bias, None


def _kernels() -> Any:
    """The module of compiled kernels; Numba takes a while to import."""
    from foveal.kernels import norm_gelu

    return norm_gelu
