"""What a network is made of: its layers, their sizes and their work, and its tensors and where they are."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from foveal.data.catalog import open_data
from foveal.data.input import training_pipeline, training_source
from foveal.device import autocast, find_device, resolve_machine
from foveal.inference import open_run, undisturbed
from foveal.models.registry import build_model
from foveal.recipe import Recipe

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor, nn

    from foveal.data.download import ProgressReporter


@dataclass(frozen=True)
class LayerSummary:
    """A module that has no parts, or has parameters or work of its own beside its parts.

    Attributes:
        name: of the module; empty for the network itself.
        kind: its class.
        output: shape of what it gives for an image, without the batch; None if that is no tensor.
        dtype: of that.
        device: of that.
        parameters: numbers in its own parameters.
        multiply_adds: of its convolutions and matrix products, for an image.
    """

    name: str
    kind: str
    output: tuple[int, ...] | None
    dtype: str | None
    device: str | None
    parameters: int
    multiply_adds: int


@dataclass(frozen=True)
class StoredTensor:
    """A parameter, or a buffer such as batch norm's statistics.

    Attributes:
        name: in the network.
        role: ``parameter`` or ``buffer``.
        shape: its sizes.
        dtype: of its numbers.
        device: where it is.
        elements: how many numbers.
        nbytes: in memory.
    """

    name: str
    role: str
    shape: tuple[int, ...]
    dtype: str
    device: str
    elements: int
    nbytes: int


@dataclass(frozen=True)
class NetworkSummary:
    """A network at a glance.

    Attributes:
        name: of the recipe, or the run's folder.
        image_shape: height, width and channels of what it sees.
        classes: how many it tells apart.
        layers: in the order in which they are used.
        tensors: in the network's order.
    """

    name: str
    image_shape: tuple[int, int, int]
    classes: int
    layers: tuple[LayerSummary, ...]
    tensors: tuple[StoredTensor, ...]

    @property
    def parameters(self) -> int:
        """Numbers in all parameters; what is shared counts once."""
        return sum(each.elements for each in self.tensors if each.role == "parameter")

    @property
    def nbytes(self) -> int:
        """Of all tensors in memory."""
        return sum(each.nbytes for each in self.tensors)

    @property
    def multiply_adds(self) -> int:
        """Of convolutions and matrix products, for one image, forward."""
        return sum(each.multiply_adds for each in self.layers)

    def report(self) -> dict[str, Any]:
        """Plain values, as the command line prints them."""
        rows = {
            "layers": [vars(each) for each in self.layers],
            "tensors": [vars(each) for each in self.tensors],
        }
        totals = {name: getattr(self, name) for name in ("parameters", "nbytes", "multiply_adds")}
        return {**vars(self), **totals, **rows}


def summarise(
    what: Recipe | str | Path,
    *,
    device: str | None = None,
    progress: ProgressReporter | None = None,
    report: Callable[[str], None] = lambda _text: None,
) -> NetworkSummary:
    """Look at the network of a recipe, with its first weights, or of a run's newest checkpoint.

    Args:
        what: a recipe, whose data say how large images are and how many classes there are; or a run folder.
        device: overrides the recipe's.
        progress: told of downloads.
        report: told, in a line each, of damaged checkpoints.

    Raises:
        FovealError: the recipe, its data or the run cannot be used.
    """
    if not isinstance(what, Recipe):
        run = open_run(what, weights="raw", device=device, report=report)
        height, width, channels = run.state["image_shape"]
        shape, classes = (height, width, channels), len(run.state["classes"])
        return describe_network(str(run.folder), run.network, shape, classes, run.recipe.precision)
    recipe = what.model_copy(update={"device": device}) if device else what
    recipe = resolve_machine(recipe)
    source = training_source(recipe, open_data(recipe.data, progress=progress))
    shape, classes = training_pipeline(recipe, source).image_shape, len(source.classes)
    model = build_model(recipe.model, classes, shape, recipe.seed.init).to(find_device(recipe.device))
    return describe_network(recipe.name, model, shape, classes, recipe.precision)


def describe_network(
    name: str, model: nn.Module, image_shape: tuple[int, int, int], classes: int, precision: str = "float32"
) -> NetworkSummary:
    """Run a network once, on a black image, and note what its modules do; it stays as it is.

    Args:
        name: what to call it.
        model: the network, on its device.
        image_shape: height, width, channels.
        classes: how many it tells apart.
        precision: of the recipe; ``auto``, which is not measured here, counts as float32.
    """
    device = next(model.parameters()).device
    height, width, channels = image_shape
    images = torch.zeros(1, channels, height, width, device=device)
    observer = _Observer()
    chosen = "float32" if precision == "auto" else precision
    with ExitStack() as hooks, undisturbed(model), autocast(device, chosen), observer.counter:
        for path, module in model.named_modules():
            hooks.enter_context(module.register_forward_pre_hook(observer.enter))
            hooks.enter_context(module.register_forward_hook(partial(observer.leave, path)))
        model(images)
    tensors = [
        *(_stored(path, "parameter", each) for path, each in model.named_parameters()),
        *(_stored(path, "buffer", each) for path, each in model.named_buffers()),
    ]
    return NetworkSummary(name, image_shape, classes, tuple(observer.layers.values()), tuple(tensors))


class _Observer:
    """Follows a forward pass from module to module.

    Attributes:
        counter: counts floating-point operations while it is active.
        layers: by the module's name.
    """

    def __init__(self) -> None:
        self.counter = FlopCounterMode(display=False)
        self.layers: dict[str, LayerSummary] = {}
        self._running: list[
            tuple[int, list[int]]
        ] = []  # operations before a module, and of each of its parts

    def enter(self, *_arguments: object) -> None:
        """A module's forward begins."""
        self._running.append((self.counter.get_total_flops(), []))

    def leave(self, name: str, module: nn.Module, _inputs: object, output: object) -> None:
        """It ends."""
        before, parts = self._running.pop()
        operations = self.counter.get_total_flops() - before
        for _, outer in self._running[-1:]:
            outer.append(operations)
        multiply_adds = (operations - sum(parts)) // 2  # of which each is two operations
        parameters = sum(each.numel() for each in module.parameters(recurse=False))
        if multiply_adds or parameters or not any(True for _ in module.children()):
            earlier = self.layers.get(name)  # of a module that is used several times, the work is summed
            multiply_adds += earlier.multiply_adds if earlier else 0
            kind = type(module).__name__
            given = output if isinstance(output, torch.Tensor) else None
            self.layers[name] = LayerSummary(
                name,
                kind,
                None if given is None else tuple(given.shape[1:]),
                None if given is None else _dtype(given),
                None if given is None else str(given.device),
                parameters,
                multiply_adds,
            )


def _stored(name: str, role: str, tensor: Tensor) -> StoredTensor:
    shape, device = tuple(tensor.shape), str(tensor.device)
    return StoredTensor(name, role, shape, _dtype(tensor), device, tensor.numel(), tensor.nbytes)


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
