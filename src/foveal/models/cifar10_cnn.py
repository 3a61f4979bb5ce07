"""The network of TensorFlow's CIFAR-10 tutorial: two convolutions with response norms, three dense layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from foveal.errors import RecipeError
from foveal.models.layers import FlattenNhwc, SameMaxPool2d, truncated_normal
from foveal.models.response_norm import LocalResponseNorm

if TYPE_CHECKING:
    from collections.abc import Sequence


class Cifar10Cnn(nn.Module):
    """conv 5x5, pool, norm, conv 5x5, norm, pool, dense, dense, logits.

    The modules have the tutorial's names. ``norm1``, ``norm2``, ``pool1`` and ``pool2`` give what its tensors
    of these names hold; ``conv1``, ``conv2``, ``local3`` and ``local4`` what they hold before ReLU.

    Source: TensorFlow models, ``tutorials/image/cifar10/cifar10.py``.

    Args:
        num_classes: number of logits.
        image_shape: height, width, channels; 24 x 24 x 3 in the tutorial, any here.
        filters: output channels of the two convolutions.
        units: widths of the two dense layers.
        conv_deviation: standard deviation of the convolutions' first weights; the tutorial had 1e-4 at first
            and 5e-2 later.
    """

    def __init__(
        self,
        num_classes: int,
        image_shape: tuple[int, int, int],
        filters: Sequence[int] = (64, 64),
        units: Sequence[int] = (384, 192),
        conv_deviation: float = 1e-4,
    ) -> None:
        super().__init__()
        if len(filters) != 2 or len(units) != 2:
            raise RecipeError("model.options: cifar10_cnn has two filters and two units")
        if conv_deviation <= 0:
            raise RecipeError(f"model.options.conv_deviation = {conv_deviation}: should be above 0")
        height, width, channels = image_shape
        self.conv1 = nn.Conv2d(channels, filters[0], 5, padding=2)
        # Both are monotonic, so their order does not matter, and here ReLU touches a quarter of the values.
        self.pool1 = nn.Sequential(SameMaxPool2d(3, 2), nn.ReLU())
        self.norm1 = _norm()
        self.conv2 = nn.Conv2d(filters[0], filters[1], 5, padding=2)
        self.relu2 = nn.ReLU()
        self.norm2 = _norm()
        self.pool2 = SameMaxPool2d(3, 2)
        self.flatten = FlattenNhwc()
        self.local3 = nn.Linear(-(-height // 4) * -(-width // 4) * filters[1], units[0])
        self.relu3 = nn.ReLU()
        self.local4 = nn.Linear(units[0], units[1])
        self.relu4 = nn.ReLU()
        self.softmax_linear = nn.Linear(units[1], num_classes)
        truncated_normal(self.conv1, conv_deviation)
        truncated_normal(self.conv2, conv_deviation, bias=0.1)
        truncated_normal(self.local3, 0.04, bias=0.1)
        truncated_normal(self.local4, 0.04, bias=0.1)
        truncated_normal(self.softmax_linear, 1 / units[1])

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[B, classes]`` of float ``[B, C, H, W]``."""
        hidden = self.norm1(self.pool1(self.conv1(images)))
        hidden = self.pool2(self.norm2(self.relu2(self.conv2(hidden))))
        hidden = self.relu3(self.local3(self.flatten(hidden)))
        logits: Tensor = self.softmax_linear(self.relu4(self.local4(hidden)))
        return logits


def _norm() -> LocalResponseNorm:
    return LocalResponseNorm(radius=4, bias=1.0, alpha=0.001 / 9, beta=0.75)
