"""A contact sheet: some training images, and what a recipe makes of each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from foveal.data.decode import decode, read_header
from foveal.data.input import training_pipeline
from foveal.data.inspection.sheet import class_caption, draw_sheet
from foveal.data.sampler import Sample
from foveal.data.source import Encoded
from foveal.errors import RecipeError
from foveal.seeding import permute

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

    from foveal.data.source import Source
    from foveal.recipe import Recipe


def contact_sheet(source: Source, recipe: Recipe, *, count: int = 8, versions: int = 6) -> Image:
    """Draw examples, each followed by what training would see of it in its first epochs.

    Small images are enlarged, all by the same whole factor and with sharp pixels; large ones are reduced.
    Values below 0 and above 255, which changes of brightness give, are shown as black and white.

    Args:
        source: the training part; examples are drawn from it by the recipe's data seed.
        recipe: says how images are distorted.
        count: how many examples.
        versions: of each.

    Returns:
        The sheet, of mode RGB.

    Raises:
        RecipeError: the recipe does not fit the images, or the examples are rows of numbers.
        DataError: an example cannot be read.
    """
    seed = recipe.seed.data
    indices = permute(np.arange(min(count, len(source))), len(source), seed, "preview")
    batch = source.read(indices)
    if isinstance(batch.images, Encoded):
        keys = [source.key(index) for index in indices.tolist()]
        whole = [
            decode(content, read_header(content, key), None, key)
            for content, key in zip(batch.images.contents, keys, strict=True)
        ]
    elif batch.images.dtype == np.uint8:
        whole = list(batch.images)
    else:
        raise RecipeError("the examples are rows of numbers: there is nothing to look at")
    pipeline = training_pipeline(recipe.model_copy(update={"device": "cpu"}), source)
    distorted = [
        np.rint(pipeline.distort(_sample(indices, epoch, len(source)))).clip(0, 255).astype(np.uint8)
        for epoch in range(versions)
    ]
    rows = [
        [(whole[row], class_caption(source.classes, target)), *((version[row], "") for version in distorted)]
        for row, target in enumerate(batch.targets.tolist())
    ]
    headings = ["original", *(f"epoch {epoch}" for epoch in range(versions))]
    return draw_sheet(f"{recipe.name}, seed {seed}", rows, headings)


def _sample(indices: NDArray[np.int64], epoch: int, size: int) -> Sample:
    """Examples, at places in the stream that belong to an epoch."""
    return Sample(epoch * size + indices, indices, np.full_like(indices, epoch))
