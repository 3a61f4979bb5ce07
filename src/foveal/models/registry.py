"""Networks by name."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from foveal.errors import RecipeError, UnknownNameError
from foveal.models.cifar10_cnn import Cifar10Cnn
from foveal.models.dense import Dense
from foveal.models.efficientnet_lite import EfficientNetLite0
from foveal.models.inception_v3 import InceptionV3
from foveal.models.mnist_cnn import MnistCnn
from foveal.models.small_cnn import SmallCnn
from foveal.models.timm import PREFIX as TIMM
from foveal.models.timm import find_timm
from foveal.models.whitened_cnn import WhitenedCnn
from foveal.registry import call_factory, load_factory

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from foveal.recipe import ModelPart

MODELS: dict[str, Callable[..., nn.Module]] = {
    "cifar10_cnn": Cifar10Cnn,
    "dense": Dense,
    "efficientnet_lite0": EfficientNetLite0,
    "inception_v3": InceptionV3,
    "mnist_cnn": MnistCnn,
    "small_cnn": SmallCnn,
    "whitened_cnn": WhitenedCnn,
}


@runtime_checkable
class BeginsFromImages(Protocol):
    """A network some of whose first weights come from training images; yours may be one.

    Attributes:
        initial_examples: how many images it wants: the first ones of the training data.
    """

    initial_examples: int

    def initialise_from(self, images: Tensor) -> None:
        """Set weights; called once, before the first step of a run, and not when it is resumed.

        Args:
            images: float32 ``[B, C, H, W]``, on the CPU, as evaluation shows them; fewer than
                ``initial_examples`` where there are no more. The weights must follow from them alone.
        """


def build_model(part: ModelPart, num_classes: int, image_shape: tuple[int, int, int], seed: int) -> nn.Module:
    """A network with its first weights, on the CPU, in channels_last memory format.

    Args:
        part: the recipe's ``model`` table.
        num_classes: number of logits.
        image_shape: height, width, channels of the images.
        seed: the recipe's init seed; equal seeds give equal weights on every device.

    Raises:
        UnknownNameError: no network, or no option of it, has that name.
        RecipeError: your own factory returned something else than a module.
    """
    if ":" in part.name:
        factory = load_factory(part.name, "model.name")
    elif part.name.startswith(TIMM):
        factory = find_timm(part.name)
    elif part.name in MODELS:
        factory = MODELS[part.name]
    else:
        raise UnknownNameError(
            "model", part.name, MODELS, "(timm's: timm/NAME; your own: model.name = 'package.module:factory')"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = call_factory(factory, part.name, "model.options", part.options, num_classes, image_shape)
    if not isinstance(model, nn.Module):
        raise RecipeError(f"model.name: {part.name} returned {type(model).__name__}, not a torch.nn.Module")
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


@contextmanager
def end_points(model: nn.Module, names: Collection[str]) -> Iterator[dict[str, Tensor]]:
    """Collect the outputs of named submodules: while the block runs, each forward fills the dictionary.

    >>> with end_points(model, ["conv1"]) as activations:
    ...     logits = model(images)
    >>> activations["conv1"].shape

    Raises:
        UnknownNameError: the network has no submodule of a name.
    """
    modules = {name: module for name, module in model.named_modules() if name}
    outputs: dict[str, Tensor] = {}
    handles = []
    try:
        for name in names:
            if name not in modules:
                raise UnknownNameError("activation", name, modules)
            handles.append(modules[name].register_forward_hook(_recorder(outputs, name)))
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def _recorder(outputs: dict[str, Tensor], name: str) -> Callable[[nn.Module, object, Tensor], None]:
    def record(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        outputs[name] = output

    return record
