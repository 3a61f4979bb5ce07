"""A fast network for small photographs: frozen whitening, then groups of two convolutions."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from foveal.errors import RecipeError
from foveal.models.layers import FixedScaleBatchNorm2d
from foveal.models.norm_activation import NormGelu

if TYPE_CHECKING:
    from collections.abc import Sequence

_SIDE = 2  # of the patches that are whitened
_EPSILON = 5e-4  # added to their variances, in units of the normalised pixels' squares


class WhitenedCnn(nn.Module):
    """Whitening 2x2, GELU, groups of convolutions 3x3, the maximum over the image, logits.

    The whitening filters do not learn: :meth:`initialise_from` computes them from training images. They are
    held as a buffer, so that checkpoints have them, and averages of weights leave them alone. Only their bias
    learns, which is of use at the beginning; when it is frozen, the backward pass ends before the
    whitening.

    Source: Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU", 2024, and the records
    ``airbench94_muon`` (two convolutions a group) and ``airbench96`` (three).

    Args:
        num_classes: number of logits.
        image_shape: height, width, channels; of at least 9 pixels a side with three groups.
        widths: output channels of each group.
        convolutions: of each group, 2 or 3; where there are three, the last two are a residual.
        scale: what the logits are multiplied by.
        norm_memory: share of batch norm's running statistics that is kept at a step.

    Attributes:
        initial_examples: of how many images :meth:`initialise_from` is to be given.

    Raises:
        RecipeError: the images are too small, or an option is out of range.
    """

    initial_examples = 5000

    def __init__(
        self,
        num_classes: int,
        image_shape: tuple[int, int, int],
        widths: Sequence[int] = (64, 256, 256),
        convolutions: int = 2,
        scale: float = 1 / 9,
        norm_memory: float = 0.6,
    ) -> None:
        super().__init__()
        height, width, channels = image_shape
        if not widths or any(each < 1 for each in widths):
            raise RecipeError(f"model.options.widths = {list(widths)}: some are needed, each of at least 1")
        if convolutions not in (2, 3):
            raise RecipeError(f"model.options.convolutions = {convolutions}: must be 2 or 3")
        if not 0 <= norm_memory < 1:
            raise RecipeError(f"model.options.norm_memory = {norm_memory}: must be in [0, 1)")
        least = (1 << len(widths)) + _SIDE - 1  # each group halves the image
        if min(height, width) < least:
            raise RecipeError(
                f"whitened_cnn: images of {height} x {width} are too small for {len(widths)} groups: "
                f"use {least} x {least} or more, or fewer widths"
            )
        self.whiten = Whitening(channels)
        self.groups = nn.Sequential(
            *(
                Group(inputs, outputs, convolutions, 1 - norm_memory)
                for inputs, outputs in pairwise((self.whiten.filters, *widths))
            )
        )
        self.head = nn.Linear(widths[-1], num_classes, bias=False)
        self.scale = scale

    def initialise_from(self, images: Tensor) -> None:
        """Whiten patches of these images: float32 ``[B, C, H, W]``, normalised, on any device."""
        self.whiten.initialise_from(images)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[B, classes]`` of float ``[B, C, H, W]``."""
        hidden = self.groups(functional.gelu(self.whiten(images)))
        logits: Tensor = self.head(hidden.amax(dim=(2, 3))) * self.scale
        return logits


class Whitening(nn.Module):
    """A convolution with every principal component of 2x2 patches, at unit variance, and its negative.

    Until :meth:`initialise_from`, it has the pixels of the patches in the components' place.

    Args:
        channels: of the images.

    Attributes:
        filters: number of output channels: twice the values of a patch.
        weight: float32 ``[filters, channels, 2, 2]``, a buffer.
    """

    weight: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        size = channels * _SIDE**2
        self.filters = 2 * size
        self.register_buffer("weight", torch.empty(self.filters, channels, _SIDE, _SIDE))
        self.bias = nn.Parameter(torch.zeros(self.filters))
        self._use(torch.eye(size))
        nn.init.uniform_(self.bias, -(size**-0.5), size**-0.5)  # as PyTorch's convolutions have it

    def initialise_from(self, images: Tensor) -> None:
        """Use the components of the second moments of all patches, divided by their roots.

        Args:
            images: float ``[B, C, H, W]``; computed with on the processor, in float64.
        """
        side, moments = _SIDE, torch.zeros(self.filters // 2, self.filters // 2, dtype=torch.float64)
        count = 0
        for first in range(0, len(images), 500):
            part = images[first : first + 500].cpu().double()
            patches = functional.unfold(part, side).permute(0, 2, 1).flatten(0, 1)
            moments += patches.T @ patches
            count += len(patches)
        variances, components = torch.linalg.eigh(moments / count)
        self._use(components.T / (variances + _EPSILON).sqrt()[:, None])

    def _use(self, components: Tensor) -> None:
        """One a row, ``[size, size]``."""
        rows = torch.cat([components, -components])
        self.weight.copy_(rows.view(self.weight.shape))

    def forward(self, images: Tensor) -> Tensor:
        """``[B, C, H, W]`` to ``[B, filters, H - 1, W - 1]``."""
        return functional.conv2d(images, self.weight, self.bias)

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        return f"{self.weight.shape[1]}, {self.filters}, kernel_size={_SIDE}"


class Group(nn.Module):
    """conv 3x3, pool, norm, GELU, conv 3x3, norm, GELU; or another conv and norm, and a sum, before the last.

    Args:
        inputs: channels that come in.
        outputs: channels that come out.
        convolutions: 2 or 3.
        momentum: of batch norm.
    """

    def __init__(self, inputs: int, outputs: int, convolutions: int, momentum: float) -> None:
        super().__init__()
        self.first = nn.Sequential(
            _convolution(inputs, outputs),
            nn.MaxPool2d(2),
            NormGelu(outputs, momentum),
        )
        self.residual = convolutions == 3
        layers: list[nn.Module] = [_convolution(outputs, outputs), NormGelu(outputs, momentum)]
        if self.residual:  # activated after the sum
            layers += [_convolution(outputs, outputs), FixedScaleBatchNorm2d(outputs, momentum)]
        self.further = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        """``[B, inputs, H, W]`` to ``[B, outputs, H // 2, W // 2]``."""
        hidden = self.first(images)
        further = self.further(hidden)
        return functional.gelu(further + hidden) if self.residual else further


def _convolution(inputs: int, outputs: int) -> nn.Conv2d:
    """3x3, whose first filters hand their input on (Zagoruyko, Komodakis, 2017); the others are random."""
    layer = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    nn.init.dirac_(layer.weight[:inputs].detach())
    return layer
