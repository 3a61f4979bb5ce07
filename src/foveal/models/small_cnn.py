"""A small network for small images, quick on a processor."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from foveal.errors import RecipeError
from foveal.models.layers import Dropout, FlattenNhwc

if TYPE_CHECKING:
    from collections.abc import Sequence


class SmallCnn(nn.Module):
    """Convolution, convolution and pooling, further convolutions, dropout, logits; batch norm and ReLU.

    Pooling comes before batch norm and ReLU, which then work on a quarter of the values.

    Args:
        num_classes: number of logits.
        image_shape: height, width, channels.
        widths: output channels of each convolution; at least two.
        kernel: side of the first convolution; the others are 3 x 3.
        stride: of the first convolution.
        padding: pad the first two convolutions so that they keep the size of the image.
        dropout: share of the last features that training zeroes.
    """

    def __init__(
        self,
        num_classes: int,
        image_shape: tuple[int, int, int],
        widths: Sequence[int] = (32, 48, 96),
        kernel: int = 5,
        stride: int = 2,
        padding: bool = False,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if len(widths) < 2:
            raise RecipeError("model.options.widths: small_cnn needs at least two convolutions")
        layers: list[nn.Module] = []
        for number, (inputs, outputs) in enumerate(pairwise((image_shape[2], *widths))):
            side = kernel if number == 0 else 3
            edge = side // 2 if padding and number < 2 else 0
            layers.append(nn.Conv2d(inputs, outputs, side, stride if number == 0 else 1, edge, bias=False))
            if number == 1:
                layers.append(nn.MaxPool2d(2))
            layers += [nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
        self.features = nn.Sequential(*layers)
        self.flatten = FlattenNhwc()
        self.dropout = Dropout(dropout)
        self.logits = nn.Linear(_features(self.features, image_shape), num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[B, classes]`` of float ``[B, C, H, W]``."""
        logits: Tensor = self.logits(self.dropout(self.flatten(self.features(images))))
        return logits


def _features(layers: nn.Module, image_shape: tuple[int, int, int]) -> int:
    """How many values come out of ``layers`` for one image."""
    height, width, channels = image_shape
    layers.eval()  # batch norm's statistics must not see this
    try:
        with torch.inference_mode():
            features: Tensor = layers(torch.zeros(1, channels, height, width))
    except RuntimeError:
        raise RecipeError(
            f"small_cnn: images of {height} x {width} are too small for these convolutions: "
            "use padding = true, stride = 1 or fewer widths"
        ) from None
    finally:
        layers.train()
    return features.numel()
