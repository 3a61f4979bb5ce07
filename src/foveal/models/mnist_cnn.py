"""The network of TensorFlow's tf.layers tutorial: two convolutions, a wide dense layer, dropout."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from foveal.errors import RecipeError
from foveal.models.layers import Dropout, FlattenNhwc, glorot_uniform

if TYPE_CHECKING:
    from collections.abc import Sequence


class MnistCnn(nn.Module):
    """conv 5x5, pool, conv 5x5, pool, dense, dropout, logits.

    Pooling comes before ReLU here: both are monotonic, so the outputs are the tutorial's, and ReLU and its
    gradient touch a quarter of the values.

    Args:
        num_classes: number of logits.
        image_shape: height, width, channels; 28 x 28 x 1 in the tutorial, any multiple of 4 here.
        filters: output channels of the two convolutions.
        units: width of the dense layer.
        dropout: share of its outputs that training zeroes.
    """

    def __init__(
        self,
        num_classes: int,
        image_shape: tuple[int, int, int],
        filters: Sequence[int] = (32, 64),
        units: int = 1024,
        dropout: float = 0.4,
    ) -> None:
        super().__init__()
        height, width, channels = image_shape
        if height % 4 or width % 4:
            raise RecipeError(
                f"mnist_cnn needs images whose sides are multiples of 4, not {height} x {width}"
            )
        self.conv1 = nn.Conv2d(channels, filters[0], 5, padding=2)
        self.pool1 = nn.MaxPool2d(2)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(filters[0], filters[1], 5, padding=2)
        self.pool2 = nn.MaxPool2d(2)
        self.relu2 = nn.ReLU()
        self.flatten = FlattenNhwc()
        self.dense = nn.Linear(height // 4 * (width // 4) * filters[1], units)
        self.relu3 = nn.ReLU()
        self.dropout = Dropout(dropout)
        self.logits = nn.Linear(units, num_classes)
        glorot_uniform(self)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[B, classes]`` of float ``[B, C, H, W]``."""
        hidden = self.relu1(self.pool1(self.conv1(images)))
        hidden = self.relu2(self.pool2(self.conv2(hidden)))
        hidden = self.dropout(self.relu3(self.dense(self.flatten(hidden))))
        logits: Tensor = self.logits(hidden)
        return logits
