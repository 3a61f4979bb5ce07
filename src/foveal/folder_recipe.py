"""The recipe for a folder of images: a network that knows ImageNet learns what is in it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from foveal import recipes
from foveal.errors import UsageError
from foveal.models.timm import PREFIX, find_timm_input
from foveal.recipe import (
    CentralCrop,
    Init,
    ModelPart,
    Normalization,
    RandomResizedCrop,
    Resize,
    override,
    parse_settings,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from foveal.recipe import Recipe

_RECIPE: Final = "folder"


def folder_recipe(folder: str | Path, changes: Iterable[str] = ()) -> Recipe:
    """What ``foveal train ./FOLDER`` trains.

    Args:
        folder: its path; or that of a file of labelled images in another format.
        changes: ``KEY=VALUE``, as for ``--set``. Where ``model.name`` is ``timm/NAME``, that network's own
            weights, image size and normalisation take the place of EfficientNet-Lite0's.

    Raises:
        UsageError: there is nothing of that name.
        RecipeError: a change is impossible.
    """
    path, changes = Path(folder).resolve(), list(changes)
    if not path.exists():
        raise UsageError(f"{folder}: there is no such folder of images; a recipe's name has no separator")
    recipe = recipes.load(_RECIPE)
    model = parse_settings(changes).get("model", {})
    if str(name := model.get("name", "")).startswith(PREFIX):
        recipe = _with_timm(recipe, str(name))
    called = re.sub(r"[^\w.-]+", "-", path.name).strip(".-") or recipe.name
    data = recipe.data.model_copy(update={"path": path})
    return override(recipe.model_copy(update={"name": called, "data": data}), changes)


def _with_timm(recipe: Recipe, name: str) -> Recipe:
    """The recipe with another network, and images as that one knows them."""
    known = find_timm_input(name)
    _, height, width = known["input_size"]
    crop = CentralCrop(fraction=float(known["crop_pct"]), square=True)
    method = "bicubic" if known["interpolation"] == "bicubic" else "bilinear"
    (resized,) = (each for each in recipe.augmentation if isinstance(each, RandomResizedCrop))
    return recipe.model_copy(
        update={
            "model": ModelPart(name=name),
            "init": Init(path=Path(name)),
            "augmentation": tuple(
                resized.model_copy(update={"size": (height, width)}) if each is resized else each
                for each in recipe.augmentation
            ),
            "preprocessing": (crop, Resize(size=(height, width), method=method)),
            "normalization": Normalization(mean=known["mean"], deviation=known["std"]),
        }
    )
