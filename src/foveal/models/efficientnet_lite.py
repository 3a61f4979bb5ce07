"""EfficientNet-Lite0: EfficientNet-B0 for small devices, without squeeze-and-excitation, and with ReLU6."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor, nn

from foveal.errors import RecipeError
from foveal.models.layers import Dropout, SameConv2d, StochasticDepth

_STEM, _HEAD = 32, 1280
_EPSILON = 1e-3  # of batch norm


class _Stage(NamedTuple):
    """Blocks in a row; the first has the stride, the others keep size and channels."""

    blocks: int
    kernel: int
    stride: int
    expansion: int
    channels: int


_STAGES = (
    _Stage(blocks=1, kernel=3, stride=1, expansion=1, channels=16),
    _Stage(blocks=2, kernel=3, stride=2, expansion=6, channels=24),
    _Stage(blocks=2, kernel=5, stride=2, expansion=6, channels=40),
    _Stage(blocks=3, kernel=3, stride=2, expansion=6, channels=80),
    _Stage(blocks=3, kernel=5, stride=1, expansion=6, channels=112),
    _Stage(blocks=4, kernel=5, stride=2, expansion=6, channels=192),
    _Stage(blocks=1, kernel=3, stride=1, expansion=6, channels=320),
)


class EfficientNetLite0(nn.Module):
    """Stem, 16 inverted bottlenecks, head, the mean over the image, dropout, logits.

    The modules ``stem``, ``blocks.0`` to ``blocks.15``, ``head``, ``pool`` and ``logits`` are its end points.
    Padding is TensorFlow's ``SAME``, so images may have any size; the features are a 32nd of it, rounded up.

    Sources: Tan, Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", 2019;
    TensorFlow TPU models, ``official/efficientnet/lite``, for what Lite changes and the options' defaults.

    Args:
        num_classes: number of logits.
        image_shape: height, width, channels; 224 x 224 x 3 as published, any here.
        dropout: share of the pooled features that training zeroes, in [0, 1).
        survival: probability that training keeps the last block's residual, in (0, 1]; earlier ones are kept
            more often, the first always (stochastic depth: Huang et al., 2016).
        norm_memory: share of batch norm's running statistics that is kept at a step, in [0, 1).

    Raises:
        RecipeError: an option is out of range.
    """

    def __init__(
        self,
        num_classes: int,
        image_shape: tuple[int, int, int],
        dropout: float = 0.2,
        survival: float = 0.8,
        norm_memory: float = 0.99,
    ) -> None:
        super().__init__()
        for name, share in (("dropout", dropout), ("norm_memory", norm_memory), ("survival", 1 - survival)):
            if not 0 <= share < 1:
                limits, value = ("(0, 1]", survival) if name == "survival" else ("[0, 1)", share)
                raise RecipeError(f"model.options.{name} = {value}: must be in {limits}")
        memory = 1 - norm_memory
        self.stem = ConvNorm(image_shape[2], _STEM, 3, stride=2, memory=memory)
        self.blocks = nn.Sequential(*_blocks(1 - survival, memory))
        self.head = ConvNorm(_STAGES[-1].channels, _HEAD, 1, memory=memory)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = Dropout(dropout)
        self.logits = nn.Linear(_HEAD, num_classes)
        _initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[B, classes]`` of float ``[B, C, H, W]``."""
        features = self.pool(self.head(self.blocks(self.stem(images)))).flatten(1)
        logits: Tensor = self.logits(self.dropout(features))
        return logits


class ConvNorm(nn.Sequential):
    """Convolution ``conv``, batch norm ``norm``, and ``relu``, ReLU6, unless it is linear.

    Args:
        inputs: channels that come in.
        outputs: channels that come out.
        kernel: side of the filters.
        stride: in both directions.
        groups: of channels that are convolved apart; ``inputs``: a depthwise convolution.
        memory: share of the batch in a new running statistic.
        linear: leave ReLU6 out.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        stride: int = 1,
        groups: int = 1,
        memory: float,
        linear: bool = False,
    ) -> None:
        super().__init__()
        self.conv = SameConv2d(inputs, outputs, kernel, stride, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(outputs, eps=_EPSILON, momentum=memory)
        if not linear:
            self.relu = nn.ReLU6(inplace=True)


class InvertedBottleneck(nn.Module):
    """1x1 ``expand``, depthwise ``depthwise``, linear 1x1 ``project``; added to its input where shapes agree.

    Source: Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", 2018.

    Args:
        inputs: channels that come in.
        stage: which gives kernel, expansion (1: no ``expand``) and the channels that come out.
        stride: of the depthwise convolution.
        dropped: probability that training leaves the residual out, where there is a sum.
        memory: of batch norm, as of :class:`ConvNorm`.
    """

    def __init__(self, inputs: int, stage: _Stage, stride: int, dropped: float, memory: float) -> None:
        super().__init__()
        wide = inputs * stage.expansion
        self.expand = ConvNorm(inputs, wide, 1, memory=memory) if stage.expansion > 1 else nn.Identity()
        self.depthwise = ConvNorm(wide, wide, stage.kernel, stride=stride, groups=wide, memory=memory)
        self.project = ConvNorm(wide, stage.channels, 1, memory=memory, linear=True)
        self.depth = StochasticDepth(dropped) if stride == 1 and inputs == stage.channels else None

    def forward(self, images: Tensor) -> Tensor:
        """``[B, inputs, H, W]`` to ``[B, outputs, ceil(H / stride), ceil(W / stride)]``."""
        residual: Tensor = self.project(self.depthwise(self.expand(images)))
        return residual if self.depth is None else images + self.depth(residual)


def _blocks(dropped: float, memory: float) -> list[InvertedBottleneck]:
    """All of them; the probability that a residual is left out grows from 0 with the block's number."""
    count = sum(stage.blocks for stage in _STAGES)
    blocks: list[InvertedBottleneck] = []
    inputs = _STEM
    for stage in _STAGES:
        for number in range(stage.blocks):
            stride, share = stage.stride if number == 0 else 1, dropped * len(blocks) / count
            blocks.append(InvertedBottleneck(inputs, stage, stride, share, memory))
            inputs = stage.channels
    return blocks


def _initialise(network: nn.Module) -> None:
    """First weights: of convolutions as published, normal by the fan-out (a depthwise filter has one output).

    Those of the logits are uniform, by the features: as published, by the classes, they would be much too
    large for a few classes. For 1,000 it is nearly the same.
    """
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            fan_out = math.prod(layer.kernel_size) * layer.out_channels // layer.groups
            nn.init.normal_(layer.weight, std=math.sqrt(2 / fan_out))
        elif isinstance(layer, nn.Linear):
            limit = 1 / math.sqrt(layer.in_features)
            nn.init.uniform_(layer.weight, -limit, limit)
            nn.init.zeros_(layer.bias)
