"""Layers that several networks share, with TensorFlow's conventions where they follow its networks."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor, nn
from torch.nn import functional


class FlattenNhwc(nn.Module):
    """``[B, C, H, W]`` to ``[B, H * W * C]`` in TensorFlow's order; free of copies in channels_last."""

    def forward(self, images: Tensor) -> Tensor:
        """Flatten each image."""
        return images.permute(0, 2, 3, 1).flatten(1)


class Dropout(nn.Module):
    """Dropout whose mask, on a processor, takes a quarter of the random draws that PyTorch's takes.

    PyTorch draws its mask one value at a time, in one thread. Here each 64-bit draw of the same generator
    decides about four values; ``probability`` is rounded to a multiple of 2^-16.

    Args:
        probability: share of the values that training zeroes, in [0, 1).
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.dropped = round(probability * 65536)  # of the 65,536 values that 16 bits can have

    def forward(self, values: Tensor) -> Tensor:
        """Zero some values and scale up the others, in training; else give them back."""
        if not self.training or self.dropped == 0:
            return values
        kept = 1 - self.dropped / 65536
        if values.device.type != "cpu":
            return functional.dropout(values, 1 - kept)
        draws = torch.empty((values.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
        shorts = draws.view(torch.int16)[: values.numel()].view(values.shape)
        return values * ((shorts >= self.dropped - 32768).to(values.dtype) / kept)

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        return f"{self.dropped / 65536:.4g}"


class StochasticDepth(nn.Module):
    """Zero the whole residual of some examples, and scale up the others (Huang et al., 2016).

    Args:
        probability: share of the examples whose residual training zeroes, in [0, 1).
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, residual: Tensor) -> Tensor:
        """``[B, ...]`` to the same; in evaluation, what it was given."""
        if not self.training or self.probability == 0:
            return residual
        kept = 1 - self.probability
        mask = residual.new_empty(len(residual), *[1] * (residual.ndim - 1)).bernoulli_(kept)
        return residual * (mask / kept)

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        return f"{self.probability:.4g}"


class SameConv2d(nn.Conv2d):
    """``nn.Conv2d`` with TensorFlow's ``SAME`` padding, which depends on the size of the image.

    The output has ``ceil(size / stride)`` rows or columns. Where an odd number of zeros must be added, the
    bottom and the right get one more. Source: ``tf.nn.convolution``'s notes on padding.
    """

    def forward(self, images: Tensor) -> Tensor:
        """``[B, C, H, W]`` to ``[B, outputs, ceil(H / stride), ceil(W / stride)]``."""
        images, padding = self.padded(images)
        return functional.conv2d(images, self.weight, self.bias, self.stride, padding, groups=self.groups)

    def padded(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Images with zeros around them where they must be added unevenly, and how many to add evenly."""
        sizes = zip(images.shape[2:], self.kernel_size, self.stride, strict=True)
        top, left = added = [_same_padding(*each) for each in sizes]
        if top % 2 == 0 and left % 2 == 0:
            return images, (top // 2, left // 2)
        before, after = [each // 2 for each in added], [(each + 1) // 2 for each in added]
        return functional.pad(images, (before[1], after[1], before[0], after[0])), (0, 0)


class SameMaxPool2d(nn.Module):
    """Max-pooling with TensorFlow's ``SAME`` padding, which depends on the size of the image.

    The output has ``ceil(size / stride)`` rows or columns. Where an odd number must be added, the bottom and
    the right get one more; what is added never is the maximum. Source: ``tf.nn.convolution``'s notes on
    padding.

    Args:
        kernel: side of the window.
        stride: between windows, in both directions; 1 needs an odd kernel.
    """

    def __init__(self, kernel: int, stride: int) -> None:
        super().__init__()
        if stride == 1 and kernel % 2 == 0:
            raise ValueError(f"SameMaxPool2d cannot pool windows of {kernel} x {kernel} at stride 1")
        self.kernel, self.stride = kernel, stride

    def forward(self, images: Tensor) -> Tensor:
        """``[B, C, H, W]`` to ``[B, C, ceil(H / stride), ceil(W / stride)]``."""
        # PyTorch pads evenly; ceil_mode lets the last window reach over the edge, which is the one more.
        before = [_same_padding(size, self.kernel, self.stride) // 2 for size in images.shape[2:]]
        return functional.max_pool2d(images, self.kernel, self.stride, before, ceil_mode=True)

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        return f"{self.kernel}, stride={self.stride}"


def _same_padding(size: int, kernel: int, stride: int) -> int:
    """How many rows or columns ``SAME`` adds to so many, on both sides together."""
    return max((-(-size // stride) - 1) * stride + kernel - size, 0)


def suits_kernels(values: Tensor) -> bool:
    """Whether compiled kernels can compute it: on a processor, nobody tracing for torch.compile."""
    on_processor = values.dtype in (torch.float32, torch.bfloat16) and values.device.type == "cpu"
    return on_processor and not torch.compiler.is_compiling() and _has_numba()


@cache
def _has_numba() -> bool:
    return find_spec("numba") is not None  # looks at files: a millisecond


def truncated_normal(layer: nn.Conv2d | nn.Linear, deviation: float, bias: float = 0.0) -> None:
    """Initialise as TensorFlow's ``truncated_normal`` does: what lies beyond two deviations is drawn anew.

    Args:
        layer: its weights and its bias are set.
        deviation: of the normal distribution before it is truncated.
        bias: the value of every bias.
    """
    nn.init.trunc_normal_(layer.weight, std=deviation, a=-2 * deviation, b=2 * deviation)
    if layer.bias is not None:
        nn.init.constant_(layer.bias, bias)


class FixedScaleBatchNorm2d(nn.BatchNorm2d):
    """Batch norm that learns a bias and no scale: the convolution after it could undo any scale.

    Args:
        channels: of the images.
        momentum: share of the batch in a new running statistic.
        epsilon: added to variances.
    """

    def __init__(self, channels: int, momentum: float, epsilon: float = 1e-12) -> None:
        super().__init__(channels, eps=epsilon, momentum=momentum)
        del self.weight
        self.register_buffer("weight", torch.ones(channels), persistent=False)


def glorot_uniform(module: nn.Module) -> None:
    """Initialise as tf.layers does: Glorot-uniform weights, zero biases (Glorot, Bengio, 2010)."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
