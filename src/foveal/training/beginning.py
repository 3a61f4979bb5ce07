"""First weights that a network takes from training images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from foveal.data.input import evaluation_pipeline
from foveal.data.sampler import Sample
from foveal.data.stream import StreamSource
from foveal.errors import RecipeError
from foveal.models.registry import BeginsFromImages

if TYPE_CHECKING:
    from torch import nn

    from foveal.data.source import Source
    from foveal.recipe import Recipe


def check_beginning(recipe: Recipe, source: Source, model: nn.Module) -> None:
    """Raise RecipeError if a network is to begin from images that cannot be read twice."""
    if isinstance(model, BeginsFromImages) and isinstance(source, StreamSource):
        raise RecipeError(
            f"the data are a stream, which cannot be read twice: {recipe.model.name} takes its first weights "
            "from training images"
        )


def begin_from_images(recipe: Recipe, source: Source, model: nn.Module) -> None:
    """Show a network that asks for it the first training images, as evaluation would, in the data's order.

    Args:
        recipe: resolved.
        source: the training part.
        model: the network; others than :class:`BeginsFromImages` are left alone.

    Raises:
        DataError: the images cannot be read.
    """
    if not isinstance(model, BeginsFromImages):
        return
    pipeline = evaluation_pipeline(recipe, source)
    indices = np.arange(min(model.initial_examples, len(source)))
    prepared = pipeline(Sample(indices, indices, np.zeros_like(indices)))
    images = torch.as_tensor(prepared.images).permute(0, 3, 1, 2).cpu()
    with torch.no_grad():
        model.initialise_from(images)
