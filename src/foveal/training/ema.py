"""The moving average of the weights, with TensorFlow's ramp."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from foveal.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping


class MovingAverage:
    """Averages of a network's parameters, in float32, beside the parameters themselves.

    At the n-th update (from 1) the average keeps ``min(decay, (1 + n) / (10 + n))`` of itself, as
    ``tf.train.ExponentialMovingAverage(decay, num_updates=n)`` does.
    Buffers (batch norm's statistics) are not averaged: evaluation takes the network's own.

    Attributes:
        tensors: the averages by parameter name.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """Start from the network's present weights."""
        self._decay = decay
        self._parameters = [parameter.detach() for parameter in model.parameters()]
        self.tensors = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the averages towards the weights after step number ``step`` (from 1)."""
        decay = min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.tensors.values()), self._parameters, 1 - decay)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Replace the averages.

        Raises:
            CheckpointError: names or shapes are not those of the network.
        """
        shapes = {name: value.shape for name, value in tensors.items()}
        if shapes != {name: value.shape for name, value in self.tensors.items()}:
            raise CheckpointError("the checkpoint's averages are not those of this network's parameters")
        for name, value in tensors.items():
            self.tensors[name].copy_(value)
