"""Batch norm without a learnt scale, and an activation: in few passes where a processor trains them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from foveal.models.layers import FixedScaleBatchNorm2d, suits_kernels

if TYPE_CHECKING:
    from collections.abc import Callable

# What they are given is not used after it.
_ACTIVATE: dict[str, Callable[[Tensor], Tensor]] = {"gelu": functional.gelu, "relu": torch.relu_}


class _NormActivation(FixedScaleBatchNorm2d):
    """This batch norm and then the activation; arguments, tensors and running statistics are the norm's."""

    activation: ClassVar[Literal["gelu", "relu"]]

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name is PyTorch's
        """Normalise ``[B, C, H, W]``, in training by the batch, and activate."""
        several = input.numel() > input.shape[1]
        if not (self.training and self.momentum is not None and several and suits_kernels(input)):
            return _ACTIVATE[self.activation](super().forward(input))
        apply: Any = _Normalise.apply
        pixels = input.permute(0, 2, 3, 1).contiguous()
        result, means, variances = apply(pixels, self.bias, self.eps, self.activation)
        with torch.no_grad():
            count = input.numel() // input.shape[1]
            self.running_mean.lerp_(means, self.momentum)  # type: ignore[union-attr]
            self.running_var.lerp_(variances * (count / (count - 1)), self.momentum)  # type: ignore[union-attr]
            self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
        activated: Tensor = result.permute(0, 3, 1, 2)
        return activated


class NormGelu(_NormActivation):
    """Batch norm without a learnt scale, and GELU."""

    activation = "gelu"


class NormRelu(_NormActivation):
    """Batch norm without a learnt scale, and ReLU."""

    activation = "relu"


class _Normalise(torch.autograd.Function):
    """From pixels ``[..., C]`` and a bias to what is activated, and the batch's means and variances."""

    @staticmethod
    def forward(
        ctx: Any, pixels: Tensor, bias: Tensor, epsilon: float, activation: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        result, means, variances, inverse = _kernels().normalise(activation, pixels, bias, epsilon)
        ctx.save_for_backward(pixels, means, inverse, bias)
        ctx.mark_non_differentiable(means, variances)
        ctx.activation = activation
        return result, means, variances

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        pixels, bias = _kernels().gradients(ctx.activation, gradient.contiguous(), *ctx.saved_tensors)
        return pixels, bias, None, None


def _kernels() -> Any:
    """The module of compiled kernels; Numba takes a while to import."""
    from foveal.kernels import norm_activation

    return norm_activation
