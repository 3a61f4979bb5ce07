"""What a recipe asks of its data: which examples an epoch has, their order, and what is done to them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from foveal.data.augmentation.augment import sizing
from foveal.data.combine import balanced
from foveal.data.pipeline import Pipeline
from foveal.data.resident import resident_limit
from foveal.data.sampler import Sampler
from foveal.data.stream import StreamSource
from foveal.errors import RecipeError
from foveal.recipe import Exponential

if TYPE_CHECKING:
    from collections.abc import Sequence

    from foveal.data.source import DataSet, Source
    from foveal.recipe import Recipe, Transform


def training_source(recipe: Recipe, data: DataSet) -> Source:
    """The examples that an epoch shows.

    Raises:
        RecipeError: the data are a stream, and the recipe asks for what only random access gives.
    """
    source = data.train
    if isinstance(source, StreamSource):
        _check_stream(recipe)
    return balanced(source) if recipe.data.sampling == "balanced" else source


def training_sampler(recipe: Recipe, source: Source) -> Sampler:
    """Their order."""
    part, stream = recipe.data, isinstance(source, StreamSource)
    return Sampler(
        len(source),
        recipe.batch_size,
        recipe.seed.data,
        "continuous" if stream else part.batching,
        "none" if stream else part.shuffle,
        block=part.block,
        window=part.window,
    )


def training_pipeline(recipe: Recipe, source: Source) -> Pipeline:
    """What training does to the images of ``source``."""
    transforms = recipe.augmentation
    if source.image_shape is None and sizing(transforms) is None:
        transforms = (*recipe.preprocessing, *transforms)
    limit = resident_limit(recipe.device)  # examples come again and again; in evaluations they do not
    return _pipeline(recipe, source, transforms, "replace", "augmentation", limit)


def evaluation_pipeline(recipe: Recipe, source: Source) -> Pipeline:
    """What evaluation does to them."""
    return _pipeline(recipe, source, recipe.preprocessing, "leave_out", "preprocessing")


def _pipeline(
    recipe: Recipe,
    source: Source,
    transforms: Sequence[Transform],
    damaged: Literal["replace", "leave_out"],
    field: str,
    resident_bytes: int = 0,
) -> Pipeline:
    return Pipeline(
        source,
        transforms,
        recipe.normalization,
        recipe.seed.data,
        backend=recipe.data.backend,
        device=recipe.device,
        corrupt=damaged if recipe.data.on_corrupt == "skip" else "error",
        field=field,
        resident_bytes=resident_bytes,
    )


def _check_stream(recipe: Recipe) -> None:
    what = None
    logging = {f"logging.{name}": value for name, value in recipe.logging.frequencies.items()}
    often = {"checkpoint.every": recipe.checkpoint.every, **logging}
    if isinstance(recipe.schedule, Exponential):
        often["schedule.every"] = recipe.schedule.every
    by_epochs = [field for field, frequency in often.items() if frequency.unit == "epochs"]
    if recipe.steps is None or by_epochs:
        fields = f", and {' and '.join(by_epochs)} in steps" if by_epochs else ""
        what = f"its end is not known: give steps{fields}"
    elif recipe.data.sampling != "all" or recipe.data.on_corrupt != "error":
        what = "data.sampling and data.on_corrupt need data that can be read in any order"
    elif recipe.ema and recipe.ema.statistics == "recompute":
        what = "ema.statistics = 'recompute' reads the first batches again: use copy or average"
    if what:
        raise RecipeError(f"the data are a stream: {what}")
