"""What evaluation and prediction ask a network: its logits, as quickly as they are good enough."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Final, Literal

import torch

from foveal.compilation import frozen
from foveal.device import autocast, synchronise
from foveal.folding import folded
from foveal.inference import undisturbed
from foveal.packing import packed
from foveal.views import mean_logits

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor, nn

    from foveal.recipe import Recipe

Precision = Literal["float32", "bfloat16"]

BOUNDS: Final[Mapping[Precision, float]] = {"float32": 1e-3, "bfloat16": 0.1}
"""By how much answers may differ from those of the plain network in float32, by the precision.

No probability differs by more than half of it, so that the label is the same wherever the two highest
probabilities are further apart than the bound.
"""

_FEW = 2  # images that folding is tried on: all that happens to them is kept meanwhile
_FIRST = 16  # images that precisions are compared on
_ROUNDS = 3


class Answering:
    """Asks a network; the network stays as it is, and so do gradients and random state.

    Batch norm is folded into the layers before it (:mod:`foveal.folding`), and in float32 on a processor
    convolutions are packed (:mod:`foveal.packing`). The precision is the recipe's, and
    where that is ``auto``, whichever takes less time on the first images; but bfloat16 only if on these it
    keeps to :data:`BOUNDS`.

    Attributes:
        device: where the network is.
        temperature: what logits are divided by.
        precision: what it computes in; known when the first images have come.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        averages: Mapping[str, Tensor] | None = None,
        *,
        temperature: float = 1.0,
        compiled: bool = False,
    ) -> None:
        """Nothing is computed before the first images come.

        Args:
            model: the network, on its device, in any mode; its weights must not change any more.
            recipe: resolved, except that ``precision`` may be ``auto``.
            averages: parameters and buffers to use instead of the network's own, of any dtype.
            temperature: what logits are divided by (:mod:`foveal.calibration`).
            compiled: use torch.compile, which takes up to a minute at the first images.
        """
        own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        self._averages = {name: value.to(own[name].dtype) for name, value in (averages or {}).items()}
        self._model, self._recipe, self._compiled = model, recipe, compiled
        self.temperature = temperature
        self.device = next(model.parameters()).device
        self._shape: torch.Size | None = None  # of the images for which the following is made
        self._module = model
        self._network: Callable[[Tensor], Tensor] = self._plain
        self.precision: Precision = "float32"

    def __call__(self, images: Tensor) -> Tensor:
        """Logits, float32 ``[B, classes]``, of float32 ``[B, C, H, W]`` on any device; averaged over views.

        Raises:
            UsageError: it is to be compiled, and that does not work here.
        """
        images = images.to(self.device)
        if images.shape[1:] != self._shape:
            self._prepare(images)
        return self._ask(images, self.precision)

    def _prepare(self, images: Tensor) -> None:
        """Get ready for images of this shape."""
        quick = folded(self._model, images[:_FEW], self._averages)
        self._module = self._model if quick is None else quick
        self._network = self._plain if quick is None else quick
        self.precision = self._choose(images[:_FIRST])
        if self._compiled:
            self._network = frozen(self._network)
        elif quick is not None and self.precision == "float32":
            packed_too = packed(quick, images[:_FEW], kernels=self._recipe.kernels)
            self._module = self._network = quick if packed_too is None else packed_too
        self._shape = images.shape[1:]

    def _plain(self, images: Tensor) -> Tensor:
        logits: Tensor = torch.func.functional_call(self._model, self._averages, (images,))
        return logits

    def _ask(self, images: Tensor, precision: Precision) -> Tensor:
        kernels = self._recipe.kernels and not self._compiled  # they could not be compiled
        with undisturbed(self._module), autocast(self.device, precision, kernels=kernels):
            logits = mean_logits(self._network, images, self._recipe.evaluation.tta).float()
        return logits / self.temperature if self.temperature != 1 else logits

    def _choose(self, images: Tensor) -> Precision:
        """What to compute in."""
        wanted = self._recipe.precision
        if wanted == "float32":
            return wanted
        if any(parameter.dtype != torch.float32 for parameter in self._model.parameters()):
            return "bfloat16"  # only autocast gives it images of the dtype of its weights
        with undisturbed(self._model):
            expected = mean_logits(self._plain, images, self._recipe.evaluation.tta)
        difference = self._ask(images, "bfloat16") - expected / self.temperature
        # The derivative of a probability p is p * (its logit's - the mean of all logits'). So none changes by
        # more than this, on any image whose logits change as much: these may be easier ones than others.
        most = (difference.amax(dim=1) - difference.amin(dim=1)).max() / 4
        if not most <= BOUNDS["bfloat16"] / 2:  # also where it is not a number
            return "float32"
        if wanted == "bfloat16":
            return wanted
        choices: tuple[Precision, ...] = ("float32", "bfloat16")
        return min(choices, key=partial(self._seconds, images))

    def _seconds(self, images: Tensor, precision: Precision) -> float:
        """The least time that an answer takes."""
        times = []
        for _ in range(_ROUNDS):
            start = time.perf_counter()
            self._ask(images, precision)
            synchronise(self.device)
            times.append(time.perf_counter() - start)
        return min(times)
