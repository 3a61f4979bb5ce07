"""Layers that several networks share, with TensorFlow's conventions where they follow its networks."""

from __future__ import annotations

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


def glorot_uniform(module: nn.Module) -> None:
    """Initialise as tf.layers does: Glorot-uniform weights, zero biases (Glorot, Bengio, 2010)."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
