"""Images of another size at the beginning of training, as a function of the step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from foveal.errors import RecipeError
from foveal.inference import undisturbed
from foveal.training.schedule import share_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from foveal.recipe import Recipe, Resolution


def image_size(stretches: Sequence[Resolution], step: int, total: int) -> tuple[int, int] | None:
    """Height and width of what step number ``step`` (from 0) of ``total`` sees; None: those of the images."""
    return next((each.size for each in stretches if step < share_of(total, each.until)), None)


def scaled(images: Tensor, size: tuple[int, int] | None) -> Tensor:
    """Finished images, scaled with the triangle filter of Pillow's BILINEAR: antialiased where they shrink.

    Args:
        images: float32 ``[B, C, H, W]``.
        size: height and width; None: nothing is done.

    Returns:
        float32 ``[B, C, *size]``, in the memory format of ``images``.
    """
    if size is None or images.shape[2:] == size:
        return images
    return functional.interpolate(images, size, mode="bilinear", antialias=True)


def check_sizes(recipe: Recipe, model: nn.Module, image_shape: tuple[int, int, int]) -> None:
    """Raise RecipeError if the network cannot take images of a size that ``resolution`` names."""
    height, width, channels = image_shape
    if recipe.resolution and min(height, width) == 1:
        raise RecipeError(f"resolution: examples of {height} x {width} are no images that could be scaled")
    for number, stretch in enumerate(recipe.resolution):
        try:
            with undisturbed(model):
                model(torch.zeros(2, channels, *stretch.size))
        except (RuntimeError, ValueError) as error:
            size, reason = " x ".join(map(str, stretch.size)), str(error).partition("\n")[0]
            raise RecipeError(
                f"resolution.{number}.size: {recipe.model.name} cannot take images of {size}: {reason}"
            ) from None
