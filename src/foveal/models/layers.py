"""Layers that several networks share, with TensorFlow's conventions where they follow its networks."""

from __future__ import annotations

from torch import Tensor, nn


class FlattenNhwc(nn.Module):
    """``[B, C, H, W]`` to ``[B, H * W * C]`` in TensorFlow's order; free of copies in channels_last."""

    def forward(self, images: Tensor) -> Tensor:
        """Flatten each image."""
        return images.permute(0, 2, 3, 1).flatten(1)


def glorot_uniform(module: nn.Module) -> None:
    """Initialise as tf.layers does: Glorot-uniform weights, zero biases (Glorot, Bengio, 2010)."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
