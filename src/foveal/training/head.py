"""The last layer, fitted before the first step to what a pretrained network makes of the training images.

Every image goes through the network once, as evaluation shows it; on its features a multinomial logistic
regression takes seconds. Training of all layers then begins with a head that is right already, and not with
one that knows nothing and would first undo what the others know.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from foveal.data.combine import subset
from foveal.data.stream import StreamSource
from foveal.device import autocast
from foveal.ensemble import shared_batches
from foveal.errors import RecipeError
from foveal.inference import undisturbed

if TYPE_CHECKING:
    from torch import Tensor

    from foveal.data.source import DataSet, Source
    from foveal.recipe import Head, Recipe

_LEAST: Final = 1e-6  # that a feature's deviation is taken for: some are the same for all images
_ITERATIONS: Final = 200  # of L-BFGS, at most


@dataclass(frozen=True)
class _Features:
    """What the last layer sees of some examples: float64 ``[N, F]``, int64 ``[N]``."""

    values: Tensor
    labels: Tensor

    def standardised(self, mean: Tensor, deviation: Tensor) -> _Features:
        return _Features((self.values - mean) / deviation, self.labels)


def check_head(recipe: Recipe, source: Source, model: nn.Module) -> None:
    """Raise RecipeError if the recipe asks for a head to be fitted where that cannot be done."""
    if recipe.head is None:
        return
    if isinstance(source, StreamSource):
        raise RecipeError("head: the data are a stream, which cannot be read twice")
    find_classifier(model, len(source.classes))


def find_classifier(model: nn.Module, classes: int) -> nn.Linear | nn.Conv2d:
    """The last layer with that many outputs, linear or a 1x1 convolution: it makes logits of features.

    Raises:
        RecipeError: there is none.
    """
    layers = [each for each in model.modules() if isinstance(each, nn.Linear | nn.Conv2d)]
    for layer in reversed(layers):
        outputs, inputs = layer.weight.shape[:2]
        if outputs == classes and layer.weight[0].numel() == inputs:
            return layer
    raise RecipeError(f"head: the network has no linear layer with {classes} outputs: leave the table out")


def fit_head(recipe: Recipe, data: DataSet, model: nn.Module) -> str:
    """Fit the last layer, with the penalty of those in the recipe that does best on the validation part.

    Args:
        recipe: resolved, with a ``head``.
        data: the training part is fitted; classes count equally if ``data.sampling`` is balanced.
        model: the network, on its device.

    Returns:
        What was done, for people.

    Raises:
        RecipeError: what seemed the last layer does not give the network's logits.
        DataError: an image cannot be read.
    """
    head = recipe.head
    assert head is not None
    classes = len(data.train.classes)
    layer = find_classifier(model, classes)
    train = _features(recipe, data.train, model, layer, head.examples)
    held = None
    if data.validation is not None:
        held = _features(recipe, data.validation, model, layer, head.examples)
    mean, deviation = train.values.mean(dim=0), train.values.std(dim=0, correction=0) + _LEAST
    train = train.standardised(mean, deviation)
    held = held and held.standardised(mean, deviation)
    importance = torch.ones(classes, dtype=torch.float64)
    if recipe.data.sampling == "balanced":
        importance /= train.labels.bincount(minlength=classes).clamp(min=1)
    weight, bias, penalty = _choose(head, train, held, importance)
    weight /= deviation
    with torch.no_grad():
        layer.weight.copy_(weight.view_as(layer.weight))
        if layer.bias is not None:
            layer.bias.copy_(bias - weight @ mean)
    return f"head: fitted to the features of {len(train.labels):,} images, with the penalty {penalty:g}"


def _choose(
    head: Head, train: _Features, held: _Features | None, importance: Tensor
) -> tuple[Tensor, Tensor, float]:
    """Weights, bias and penalty; without a validation part, the middle one of the penalties."""
    penalties = sorted(head.penalties, reverse=True)
    if held is None:
        penalties = [penalties[len(penalties) // 2]]
    weight = torch.zeros(len(importance), train.values.shape[1], dtype=torch.float64)
    bias = torch.zeros(len(importance), dtype=torch.float64)
    fits = []
    for penalty in penalties:  # from simple to intricate: each fit begins where the one before ended
        weight, bias = _fit(train, importance, penalty, weight, bias)
        loss = 0.0
        if held is not None:
            loss = functional.cross_entropy(held.values @ weight.T + bias, held.labels, importance).item()
        fits.append((loss, weight, bias, penalty))
    return min(fits, key=lambda fit: fit[0])[1:]


def _fit(
    train: _Features, importance: Tensor, penalty: float, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    """Minimise the mean cross-entropy plus ``penalty / 2`` times the sum of the squared weights."""
    weight, bias = (each.clone().requires_grad_() for each in (weight, bias))
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=_ITERATIONS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        logits = train.values @ weight.T + bias
        loss = (
            functional.cross_entropy(logits, train.labels, importance) + penalty / 2 * weight.square().sum()
        )
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return weight.detach(), bias.detach()


def _features(recipe: Recipe, source: Source, model: nn.Module, layer: nn.Module, limit: int) -> _Features:
    """What comes into ``layer``, of all examples or of ``limit`` that are spread evenly over the source."""
    size = len(source)
    chosen = source if size <= limit else subset(source, np.arange(limit) * size // limit)
    seen: list[tuple[Tensor, Tensor]] = []
    hook = layer.register_forward_hook(lambda _layer, inputs, output: seen.append((inputs[0], output)))
    device = next(model.parameters()).device
    found: list[_Features] = []
    try:
        with shared_batches(chosen, [recipe], lambda _text: None, lambda: False) as batches:
            for batch in batches:
                if not len(batch.targets):  # all of them damaged
                    continue
                seen.clear()
                with undisturbed(model), autocast(device, "float32", kernels=recipe.kernels):
                    logits = model(batch.images[0].to(device))
                if not seen or not torch.equal(seen[-1][1].flatten(1), logits):
                    raise RecipeError(
                        f"head: the last linear layer of {recipe.model.name} is not what gives its logits: "
                        "leave the table out"
                    )
                found.append(_Features(seen[-1][0].flatten(1).double().cpu(), batch.targets.cpu()))
    finally:
        hook.remove()
    return _Features(torch.cat([each.values for each in found]), torch.cat([each.labels for each in found]))
