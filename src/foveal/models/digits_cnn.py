"""A small network for small images."""

from __future__ import annotations

from torch import Tensor, nn


class DigitsCnn(nn.Module):
    """Two convolutions with batch norm, pooling, two more, global average pooling, dropout, logits.

    Args:
        num_classes: number of logits.
        image_shape: height, width, channels; sides of at least 4 pixels.
        width: channels of the first stage; the second has twice as many.
        dropout: share of the pooled features that training zeroes.
    """

    def __init__(
        self, num_classes: int, image_shape: tuple[int, int, int], width: int = 32, dropout: float = 0.2
    ) -> None:
        super().__init__()
        self.stage1 = nn.Sequential(*_conv(image_shape[2], width), *_conv(width, width))
        self.pool = nn.MaxPool2d(2)
        self.stage2 = nn.Sequential(*_conv(width, 2 * width), *_conv(2 * width, 2 * width))
        self.dropout = nn.Dropout(dropout)
        self.logits = nn.Linear(2 * width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[B, classes]`` of float ``[B, C, H, W]``."""
        features = self.stage2(self.pool(self.stage1(images))).mean((2, 3))
        logits: Tensor = self.logits(self.dropout(features))
        return logits


def _conv(inputs: int, outputs: int) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    ]
