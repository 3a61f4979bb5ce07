"""The network that a benchmark is of: one by name, a recipe's, or a run's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from foveal import recipes
from foveal.data.catalog import open_data
from foveal.data.input import training_pipeline, training_source
from foveal.device import find_device, resolve_machine
from foveal.errors import UnknownNameError, UsageError
from foveal.inference import open_run
from foveal.models.registry import MODELS, build_model
from foveal.recipe import ModelPart, Recipe, Sgd, override

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn

    from foveal.data.download import ProgressReporter

# Of what a network is made for, where it is not this:
_SHAPES = {
    "efficientnet_lite0": (224, 224, 3),
    "inception_v3": (299, 299, 3),
    "mnist_cnn": (28, 28, 1),
}
_SHAPE, _CLASSES = (32, 32, 3), 10


@dataclass(frozen=True)
class Subject:
    """A network, and what it is used on.

    Attributes:
        name: as it was given.
        network: on its device.
        recipe: resolved, except for ``precision`` and ``compile``; says how it would be trained.
        image_shape: height, width and channels of what it sees.
        classes: how many it tells apart.
    """

    name: str
    network: nn.Module
    recipe: Recipe
    image_shape: tuple[int, int, int]
    classes: int


def find_subject(
    what: str | Path | Recipe,
    *,
    size: int | None = None,
    classes: int | None = None,
    changes: Sequence[str] = (),
    device: str | None = None,
    progress: ProgressReporter | None = None,
    report: Callable[[str], None] = lambda _text: None,
) -> Subject:
    """Build the network that is named.

    Args:
        what: a network of the registry or your own (``package.module:factory``); a recipe, its name or its
            file; or a run folder, whose newest checkpoint is used.
        size: height and width of the images; by default those of the run, of the recipe's data, or what the
            network was made for.
        classes: how many there are; by default those of the run, of the recipe's data, or 10. Where size and
            classes are given, no data are read, and images have 3 channels.
        changes: ``KEY=VALUE`` for the recipe, or for the one that a network by name is given.
        device: overrides the recipe's.
        progress: told of downloads.
        report: told, in a line each, of damaged checkpoints.

    Raises:
        FovealError: there is nothing of that name, or it cannot be used so.
    """
    if isinstance(what, Recipe):
        return _of_recipe(what.name, override(what, changes), size, classes, device, progress)
    name = str(what)
    if name in MODELS or ":" in name:
        recipe = override(_recipe(name), changes)
        height, width, channels = _SHAPES.get(name, _SHAPE)
        shape = (size or height, size or width, channels)
        return _build(name, recipe, shape, classes or _CLASSES, device)
    if name in recipes.names() or name.endswith(".toml"):
        recipe = recipes.choose(name, changes)
        return _of_recipe(name, recipe, size, classes, device, progress)
    if not (isinstance(what, Path) or "/" in name or Path(name).is_dir()):
        raise UnknownNameError("network or recipe", name, [*MODELS, *recipes.names()], "(a run: ./NAME)")
    if changes or classes:
        raise UsageError(
            f"{name} is a run: its recipe and classes are settled; leave out --set and --classes"
        )
    run = open_run(name, weights="raw", device=device, report=report)
    height, width, channels = run.state["image_shape"]
    shape = (size or height, size or width, channels)
    return Subject(name, run.network, run.recipe, shape, len(run.state["classes"]))


def _recipe(network: str) -> Recipe:
    """One for a network that comes without."""
    return Recipe(
        name="bench",
        batch_size=1,
        steps=1,
        model=ModelPart(name=network),
        optimizer=Sgd(learning_rate=0.01, momentum=0.9),
    )


def _of_recipe(
    name: str,
    recipe: Recipe,
    size: int | None,
    classes: int | None,
    device: str | None,
    progress: ProgressReporter | None,
) -> Subject:
    if size and classes:
        return _build(name, recipe, (size, size, 3), classes, device)
    source = training_source(recipe, open_data(recipe.data, progress=progress))
    height, width, channels = training_pipeline(resolve_machine(recipe), source).image_shape
    shape = (size or height, size or width, channels)
    return _build(name, recipe, shape, classes or len(source.classes), device)


def _build(
    name: str, recipe: Recipe, shape: tuple[int, int, int], classes: int, device: str | None
) -> Subject:
    if device:
        recipe = recipe.model_copy(update={"device": device})
    recipe = resolve_machine(recipe)
    network = build_model(recipe.model, classes, shape, recipe.seed.init).to(find_device(recipe.device))
    return Subject(name, network, recipe, shape, classes)
