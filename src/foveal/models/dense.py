"""A multi-layer perceptron, for rows of numbers and for small images."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

from torch import Tensor, nn

from foveal.errors import RecipeError
from foveal.models.layers import Dropout, FlattenNhwc, glorot_uniform

if TYPE_CHECKING:
    from collections.abc import Sequence


class Dense(nn.Module):
    """Flatten, then linear layers with ReLU between them.

    Args:
        num_classes: number of logits.
        image_shape: height, width, channels; a row of numbers is an image of one pixel.
        widths: outputs of each hidden layer; none: logistic regression.
        dropout: share of each hidden layer's outputs that training zeroes, in [0, 1).
        batch_norm: normalise before each ReLU (Ioffe, Szegedy, 2015).

    Raises:
        RecipeError: a width or the dropout is out of range.
    """

    def __init__(
        self,
        num_classes: int,
        image_shape: tuple[int, int, int],
        widths: Sequence[int] = (64,),
        dropout: float = 0.0,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        if any(width < 1 for width in widths):
            raise RecipeError(f"model.options.widths = {list(widths)}: each must be at least 1")
        if not 0 <= dropout < 1:
            raise RecipeError(f"model.options.dropout = {dropout}: must be in [0, 1)")
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise((math.prod(image_shape), *widths)):
            layers.append(nn.Linear(inputs, outputs, bias=not batch_norm))
            if batch_norm:
                layers.append(nn.BatchNorm1d(outputs))
            layers += [nn.ReLU(inplace=True), Dropout(dropout)]
        self.flatten = FlattenNhwc()
        self.hidden = nn.Sequential(*layers)
        self.logits = nn.Linear((math.prod(image_shape), *widths)[-1], num_classes)
        glorot_uniform(self)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[B, classes]`` of float ``[B, C, H, W]``."""
        logits: Tensor = self.logits(self.hidden(self.flatten(images)))
        return logits
