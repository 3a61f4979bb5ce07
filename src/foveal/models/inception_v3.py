"""Inception v3: blocks of parallel branches with factorised convolutions, and an auxiliary classifier."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

import torch
from torch import Tensor, nn

from foveal.errors import RecipeError, UnknownNameError
from foveal.models.auxiliary import WithAuxiliary
from foveal.models.layers import Dropout, truncated_normal
from foveal.models.norm_activation import NormRelu

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_LEAST_SIDE = 75  # of images: those of 74 pixels have no place left for Mixed_7a
_AUXILIARY_AT = "Mixed_6e"


class _Conv(NamedTuple):
    """A convolution with batch norm and ReLU.

    Attributes:
        name: slim's, which ends in the sides of the filters.
        depth: output channels, before the depth multiplier.
        stride: in both directions.
        valid: whether nothing is padded (``VALID``); else the size is kept (``SAME``).
        kernel: height and width of the filters, where the name has others.
        averaged: whether the mean is taken over 3x3 places. Slim takes it before the convolution, of
            several times as many channels; for filters of 1x1 that is the same.
    """

    name: str
    depth: int
    stride: int = 1
    valid: bool = False
    kernel: tuple[int, int] | None = None
    averaged: bool = False

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of the filters."""
        height, _, width = self.name.rpartition("_")[2].partition("x")
        return self.kernel or (int(height), int(width))


# A pooling is its name; a list, at the end of a branch, is of two convolutions side by side.
_Step = _Conv | str
_BranchSteps = tuple[_Step | list[_Conv], ...]
_MAX: Final = "MaxPool_1a_3x3"


def _fives(pooled: int, first: str = "Conv2d_0a_1x1", second: str = "Conv2d_0b_5x5") -> list[_BranchSteps]:
    """A block at 35 x 35: one 5x5, and two 3x3 in the place of another (figure 5 of the paper)."""
    return [
        (_Conv("Conv2d_0a_1x1", 64),),
        (_Conv(first, 48), _Conv(second, 64)),
        (_Conv("Conv2d_0a_1x1", 64), _Conv("Conv2d_0b_3x3", 96), _Conv("Conv2d_0c_3x3", 96)),
        (_Conv("Conv2d_0b_1x1", pooled, averaged=True),),
    ]


def _sevens(depth: int) -> list[_BranchSteps]:
    """A block at 17 x 17: 7x7 as 1x7 and 7x1, once and twice (figure 6)."""
    return [
        (_Conv("Conv2d_0a_1x1", 192),),
        (_Conv("Conv2d_0a_1x1", depth), _Conv("Conv2d_0b_1x7", depth), _Conv("Conv2d_0c_7x1", 192)),
        (
            _Conv("Conv2d_0a_1x1", depth),
            _Conv("Conv2d_0b_7x1", depth),
            _Conv("Conv2d_0c_1x7", depth),
            _Conv("Conv2d_0d_7x1", depth),
            _Conv("Conv2d_0e_1x7", 192),
        ),
        (_Conv("Conv2d_0b_1x1", 192, averaged=True),),
    ]


def _threes(upright: str) -> list[_BranchSteps]:
    """A block at 8 x 8: 1x3 and 3x1 side by side (figure 7)."""
    return [
        (_Conv("Conv2d_0a_1x1", 320),),
        (_Conv("Conv2d_0a_1x1", 384), [_Conv("Conv2d_0b_1x3", 384), _Conv(upright, 384)]),
        (
            _Conv("Conv2d_0a_1x1", 448),
            _Conv("Conv2d_0b_3x3", 384),
            [_Conv("Conv2d_0c_1x3", 384), _Conv("Conv2d_0d_3x1", 384)],
        ),
        (_Conv("Conv2d_0b_1x1", 192, averaged=True),),
    ]


_STEM: Final[tuple[_Step, ...]] = (
    _Conv("Conv2d_1a_3x3", 32, stride=2, valid=True),
    _Conv("Conv2d_2a_3x3", 32, valid=True),
    _Conv("Conv2d_2b_3x3", 64),
    "MaxPool_3a_3x3",
    _Conv("Conv2d_3b_1x1", 80),
    _Conv("Conv2d_4a_3x3", 192, valid=True),
    "MaxPool_5a_3x3",
)
# Names are slim's, oddities too: checkpoints have them.
_MIXED: Final[Mapping[str, Sequence[_BranchSteps]]] = {
    "Mixed_5b": _fives(32),
    "Mixed_5c": _fives(64, "Conv2d_0b_1x1", "Conv_1_0c_5x5"),
    "Mixed_5d": _fives(64),
    "Mixed_6a": [
        (_Conv("Conv2d_1a_1x1", 384, stride=2, valid=True, kernel=(3, 3)),),
        (
            _Conv("Conv2d_0a_1x1", 64),
            _Conv("Conv2d_0b_3x3", 96),
            _Conv("Conv2d_1a_1x1", 96, stride=2, valid=True, kernel=(3, 3)),
        ),
        (_MAX,),
    ],
    "Mixed_6b": _sevens(128),
    "Mixed_6c": _sevens(160),
    "Mixed_6d": _sevens(160),
    "Mixed_6e": _sevens(192),
    "Mixed_7a": [
        (_Conv("Conv2d_0a_1x1", 192), _Conv("Conv2d_1a_3x3", 320, stride=2, valid=True)),
        (
            _Conv("Conv2d_0a_1x1", 192),
            _Conv("Conv2d_0b_1x7", 192),
            _Conv("Conv2d_0c_7x1", 192),
            _Conv("Conv2d_1a_3x3", 192, stride=2, valid=True),
        ),
        (_MAX,),
    ],
    "Mixed_7b": _threes("Conv2d_0b_3x1"),
    "Mixed_7c": _threes("Conv2d_0c_3x1"),
}
BASE: Final = (*(each if isinstance(each, str) else each.name for each in _STEM), *_MIXED)
"""The end points of the base network, in order."""


class InceptionV3(nn.Module):
    """Stem, eleven mixed blocks, the mean over all places, dropout, logits; batch norm and ReLU.

    Modules have slim's names, and so ``foveal.end_points`` gives slim's end points: those of :data:`BASE`,
    ``AuxLogits``, ``PreLogits``, ``Logits`` and ``Predictions`` (softmax). In training, a network with an
    auxiliary head gives its logits too: :class:`WithAuxiliary`.

    Images of less than 299 pixels leave less than 8x8 places to take the mean over, and the auxiliary head
    gets the filters that fit, as in slim; below 107 pixels its pooling shrinks too. Of larger images the mean
    is over all places, as with slim's ``global_pool``.

    Sources: Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", 2015; TensorFlow
    models, ``slim/nets/inception_v3.py`` and ``inception_utils.py``.

    Args:
        num_classes: number of logits.
        image_shape: height, width, channels; 299 x 299 x 3 in the paper, from 75 pixels a side here.
        auxiliary_head: have a second classifier on ``Mixed_6e``, which helps to train the first.
        dropout: share of the last features that training zeroes; in [0, 1).
        depth_multiplier: of the output channels of all convolutions but the logits; above 0.
        min_depth: channels that these have at least.
        norm_decay: share of batch norm's running statistics that is kept at a step; in [0, 1).

    Raises:
        RecipeError: the images are too small, or an option is out of range.
    """

    AuxLogits: nn.Module  # where there is an auxiliary head

    def __init__(
        self,
        num_classes: int,
        image_shape: tuple[int, int, int],
        auxiliary_head: bool = True,
        dropout: float = 0.2,
        depth_multiplier: float = 1.0,
        min_depth: int = 16,
        norm_decay: float = 0.9997,
    ) -> None:
        super().__init__()
        height, width, channels = image_shape
        if min(height, width) < _LEAST_SIDE:
            raise RecipeError(
                f"inception_v3: images of {height} x {width} are too small: "
                f"use {_LEAST_SIDE} x {_LEAST_SIDE} or more"
            )
        if not 0 <= dropout < 1:
            raise RecipeError(f"model.options.dropout = {dropout}: must be in [0, 1)")
        builder = _Builder(depth_multiplier, min_depth, norm_decay)
        for step in _STEM:
            name, layer, channels = builder.layer(channels, step)
            self.add_module(name, layer)
        for name, branches in _MIXED.items():
            block, channels = builder.mixed(channels, branches)
            self.add_module(name, block)
            if name == _AUXILIARY_AT and auxiliary_head:
                places = _places(height), _places(width)
                self.add_module("AuxLogits", builder.auxiliary_head(channels, num_classes, places))
        self.PreLogits = nn.Sequential(nn.AdaptiveAvgPool2d(1), Dropout(dropout))
        self.Logits = _named({"Conv2d_1c_1x1": builder.classifier(channels, num_classes)}, nn.Flatten())
        self.Predictions = nn.Softmax(dim=1)
        self.has_auxiliary_head = auxiliary_head

    def forward(self, images: Tensor) -> Tensor | WithAuxiliary:
        """Logits ``[B, classes]`` of float ``[B, C, H, W]``; in training, with those of the head, if any."""
        hidden = images
        auxiliary: Tensor | None = None
        for name in BASE:
            hidden = getattr(self, name)(hidden)
            if name == _AUXILIARY_AT and self.has_auxiliary_head:
                auxiliary = self.AuxLogits(hidden)
        logits: Tensor = self.Logits(self.PreLogits(hidden))
        self.Predictions(logits)  # for those who collect end points
        return WithAuxiliary(logits, auxiliary) if self.training and auxiliary is not None else logits

    def base(self, images: Tensor, end_point: str = BASE[-1]) -> Tensor:
        """The base network up to one of its end points: ``[B, channels, h, w]``; nothing more is computed.

        Raises:
            UnknownNameError: it has no end point of that name.
        """
        if end_point not in BASE:
            raise UnknownNameError("end point", end_point, BASE)
        for name in BASE[: BASE.index(end_point) + 1]:
            images = getattr(self, name)(images)
        return images


@dataclass(frozen=True)
class _Builder:
    """Makes layers, with what they have in common: what were argument scopes in slim.

    Attributes:
        depth_multiplier, min_depth, norm_decay: as of :class:`InceptionV3`.
        norm_epsilon: added to batch norm's variances.
        deviation: of the first weights, normal and truncated at two deviations.
        auxiliary_deviations: of the filters that span the auxiliary head, and of its logits.
    """

    depth_multiplier: float
    min_depth: int
    norm_decay: float
    norm_epsilon: float = 0.001
    deviation: float = 0.1
    auxiliary_deviations: tuple[float, float] = (0.01, 0.001)

    def __post_init__(self) -> None:
        if self.depth_multiplier <= 0:
            raise RecipeError(f"model.options.depth_multiplier = {self.depth_multiplier}: must be above 0")
        if self.min_depth < 1:
            raise RecipeError(f"model.options.min_depth = {self.min_depth}: must be at least 1")
        if not 0 <= self.norm_decay < 1:
            raise RecipeError(f"model.options.norm_decay = {self.norm_decay}: must be in [0, 1)")

    def convolution(self, inputs: int, conv: _Conv, deviation: float | None = None) -> tuple[nn.Module, int]:
        """A convolution without bias, batch norm without scale, ReLU; and its output channels."""
        outputs = max(int(conv.depth * self.depth_multiplier), self.min_depth)
        height, width = conv.sides
        padding = (0, 0) if conv.valid else (height // 2, width // 2)
        layer = nn.Conv2d(inputs, outputs, conv.sides, conv.stride, padding, bias=False)
        truncated_normal(layer, deviation or self.deviation)
        layers: dict[str, nn.Module] = {"conv": layer}
        if conv.averaged:  # SAME: over the pixels of the image alone
            layers["pool"] = nn.AvgPool2d(3, 1, 1, count_include_pad=False)
        layers["norm"] = NormRelu(outputs, 1 - self.norm_decay, self.norm_epsilon)
        return _named(layers), outputs

    def layer(self, inputs: int, step: _Step) -> tuple[str, nn.Module, int]:
        """Name, module and output channels of a convolution or a max-pooling."""
        if isinstance(step, _Conv):
            return step.name, *self.convolution(inputs, step)
        return step, nn.MaxPool2d(3, 2), inputs

    def mixed(self, inputs: int, branches: Iterable[_BranchSteps]) -> tuple[nn.Module, int]:
        """A block, and its output channels."""
        block, outputs = Mixed(), 0
        for number, steps in enumerate(branches):
            layers: dict[str, nn.Module] = {}
            channels = inputs
            for step in steps:
                beside = step if isinstance(step, list) else [step]
                made = [self.layer(channels, each) for each in beside]
                layers |= {name: layer for name, layer, _ in made}
                channels = sum(width for _, _, width in made)
            block.add_module(f"Branch_{number}", Branch(layers, forked=isinstance(steps[-1], list)))
            outputs += channels
        return block, outputs

    def auxiliary_head(self, inputs: int, num_classes: int, places: tuple[int, int]) -> nn.Module:
        """The second classifier, for so many rows and columns of places."""
        window = min(5, places[0]), min(5, places[1])
        pooled = [(size - side) // 3 + 1 for size, side in zip(places, window, strict=True)]
        height, width = (min(5, size) for size in pooled)
        spanning, classifying = self.auxiliary_deviations
        reduce, channels = self.convolution(inputs, _Conv("Conv2d_1b_1x1", 128))
        span = _Conv(f"Conv2d_2a_{height}x{width}", 768, valid=True)
        spanned, outputs = self.convolution(channels, span, spanning)
        layers = {
            "AvgPool_1a_5x5": nn.AvgPool2d(window, 3),
            "Conv2d_1b_1x1": reduce,
            span.name: spanned,
            "Conv2d_2b_1x1": self.classifier(outputs, num_classes, classifying),
        }
        return _named(layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def classifier(self, inputs: int, num_classes: int, deviation: float | None = None) -> nn.Conv2d:
        """Logits for each place."""
        layer = nn.Conv2d(inputs, num_classes, 1)
        truncated_normal(layer, deviation or self.deviation)
        return layer


class Branch(nn.Sequential):
    """Layers one after the other.

    Args:
        layers: by name.
        forked: the last two take the same, and their results are joined.
    """

    def __init__(self, layers: Mapping[str, nn.Module], *, forked: bool) -> None:
        super().__init__(OrderedDict(layers))
        self.forked = forked

    def forward(self, images: Tensor) -> Tensor:
        """``[B, C, H, W]`` to ``[B, channels, h, w]``."""
        layers = list(self)
        beside = layers[-2:] if self.forked else []
        for layer in layers[: len(layers) - len(beside)]:
            images = layer(images)
        return torch.cat([layer(images) for layer in beside], 1) if beside else images


class Mixed(nn.Module):
    """Branches that take the same, and whose results are joined."""

    def forward(self, images: Tensor) -> Tensor:
        """``[B, C, H, W]`` to ``[B, channels of all branches, h, w]``."""
        return torch.cat([branch(images) for branch in self.children()], 1)


def _named(layers: Mapping[str, nn.Module], *unnamed: nn.Module) -> nn.Sequential:
    """Layers one after the other, by name; after them, those without weights, which need none."""
    numbered = {str(len(layers) + number): layer for number, layer in enumerate(unnamed)}
    return nn.Sequential(OrderedDict([*layers.items(), *numbered.items()]))


def _places(side: int) -> int:
    """Rows of places that the blocks ``Mixed_6`` have for so many rows of pixels."""
    for stride in (2, 1, 2, 1, 2, 2):  # of what is 3x3 and not padded: 1a, 2a, 3a, 4a, 5a, 6a
        side = (side - 3) // stride + 1
    return side
