"""A run's network, made ready to be measured or used."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from foveal import recipes
from foveal.checkpoints.pretrained import PRETRAINED
from foveal.checkpoints.transfer import load_initial, transfer
from foveal.data.augmentation.augment import sizing
from foveal.data.imagenet import imagenet_classes
from foveal.device import find_device, resolve_machine
from foveal.errors import CheckpointError
from foveal.models.modes import evaluating
from foveal.models.registry import build_model
from foveal.recipe import Init
from foveal.run_folder import RunFolder
from foveal.views import check_views

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch import nn

    from foveal.checkpoints.layout import StoredCheckpoint
    from foveal.recipe import Recipe
    from foveal.views import Views

Weights = Literal["ema", "raw"]


@dataclass(frozen=True)
class TrainedRun:
    """A checkpoint of a run, loaded.

    Attributes:
        folder: the run's; of a pretrained model, where its file is.
        recipe: the run's, or the model's, with the device that was asked for.
        network: in evaluation mode, on its device.
        weights: which of the checkpoint's it has.
        state: the checkpoint's: step, classes, image shape.
    """

    folder: Path
    recipe: Recipe
    network: nn.Module
    weights: Weights
    state: Mapping[str, Any]

    @property
    def temperature(self) -> float:
        """What its logits are to be divided by: fitted, if the recipe asks for it, to the default weights."""
        fitted = self.weights == default_weights(self.recipe, self.state["step"])
        return float(self.state.get("temperature", 1.0)) if fitted else 1.0


def open_run(
    run: str | Path,
    *,
    checkpoint: str | int | None = None,
    weights: Weights | None = None,
    device: str | None = None,
    tta: Views | None = None,
    report: Callable[[str], None] = lambda _text: None,
) -> TrainedRun:
    """Load the network of a run.

    Args:
        run: the run folder.
        checkpoint: ``"latest"``, ``"best"`` (by validation) or a step; by default what the recipe says with
            ``evaluation.use``.
        weights: ``"ema"`` or ``"raw"``; by default the averages where the recipe keeps them and a step was
            done: before that there is nothing to average.
        device: overrides the recipe's.
        tta: overrides the recipe's ``evaluation.tta``.
        report: told, in a line each, of damaged checkpoints.

    Raises:
        FovealError: the run or its checkpoint cannot be used.
    """
    folder = RunFolder(Path(run), report)
    recipe = _asked_for(folder.recipe(), device, tta)
    which = recipe.evaluation.use if checkpoint is None else checkpoint
    stored = folder.load_checkpoint(which, needed_parts(recipe, weights))
    return load_run(folder.path, recipe, stored, weights)


def open_pretrained(name: str, *, device: str | None = None, tta: Views | None = None) -> TrainedRun:
    """Load a pretrained model, to be used as its authors evaluated it, in float32.

    Args:
        name: a key of ``PRETRAINED``: its recipe says what images become, its classes are ImageNet's.
        device: overrides the recipe's.
        tta: overrides the recipe's ``evaluation.tta``.

    Raises:
        FovealError: its package is not installed, or the weights in it cannot be used.
    """
    recipe = _asked_for(recipes.load(name).model_copy(update={"precision": "float32"}), device, tta)
    classes = imagenet_classes()
    size = sizing(recipe.preprocessing)
    assert size, "a pretrained model's recipe makes images one size"
    shape = (*size[1], 3)
    model = build_model(recipe.model, len(classes), shape, seed=0)
    init = Init(path=Path(name))
    report = transfer(model, load_initial(init, recipe.model.name), init, len(classes))
    for reason in report.skipped.values():
        raise CheckpointError(f"{PRETRAINED[name].path()}: not the weights of {name}: {reason}")
    state = {"step": 0, "classes": classes, "image_shape": shape, "stored_shape": None}
    network = model.eval().to(find_device(recipe.device))
    return TrainedRun(PRETRAINED[name].path().parent, recipe, network, "raw", state)


def _asked_for(recipe: Recipe, device: str | None, tta: Views | None) -> Recipe:
    """A recipe on this machine, with what overrides it."""
    if device:
        recipe = recipe.model_copy(update={"device": device})
    if tta:
        recipe = recipe.model_copy(update={"evaluation": recipe.evaluation.model_copy(update={"tta": tta})})
    return resolve_machine(recipe)


def needed_parts(recipe: Recipe, weights: Weights | None) -> tuple[str, ...]:
    """The parts of a checkpoint that :func:`load_run` makes these weights of."""
    return ("model", "ema") if recipe.ema is not None and weights != "raw" else ("model",)


def load_run(folder: Path, recipe: Recipe, stored: StoredCheckpoint, weights: Weights | None) -> TrainedRun:
    """The network of a checkpoint that was read.

    Args:
        folder: the run's.
        recipe: the run's, resolved.
        stored: its state, and at least the parts that are needed.
        weights: as of :func:`open_run`.

    Raises:
        CheckpointError: the weights are not there, not finite, or do not fit the network.
    """
    check_views(recipe.evaluation.tta, stored.state["image_shape"])
    chosen = weights or default_weights(recipe, stored.state["step"])
    network = _load_network(recipe, stored, chosen).to(find_device(recipe.device))
    return TrainedRun(folder, recipe, network, chosen, stored.state)


def default_weights(recipe: Recipe, step: int) -> Weights:
    """The averages where the recipe keeps them and a step was done: before that nothing is averaged."""
    return "ema" if recipe.ema is not None and step else "raw"


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Use a network that is being trained: evaluation mode, no gradients, random numbers of their own.

    Afterwards each of its modules is in the mode it was in, and the generators of the processor and of the
    network's device are in the state they were in. A network that draws random numbers even in evaluation
    mode draws the same ones every time.
    """
    device = next(model.parameters()).device
    cuda = [device] if device.type == "cuda" else []
    with evaluating(model), torch.inference_mode(), torch.random.fork_rng(cuda):
        torch.default_generator.manual_seed(0)
        for each in cuda:
            with torch.cuda.device(each):
                torch.cuda.manual_seed(0)
        yield


def _load_network(recipe: Recipe, stored: StoredCheckpoint, weights: Weights) -> nn.Module:
    """The network of a checkpoint, ready for inference, on the CPU.

    Raises:
        CheckpointError: the averages are asked for but were not kept or not begun, the weights are not
            finite, or they do not fit the network.
    """
    state = stored.state
    height, width, channels = state["image_shape"]
    model = build_model(recipe.model, len(state["classes"]), (height, width, channels), seed=0)
    if weights == "ema":
        if "ema" not in stored.tensors:
            raise CheckpointError(f"{stored.folder}: holds no averaged weights; use --weights raw")
        if not state["step"]:
            raise CheckpointError(
                f"{stored.folder}: nothing was averaged before the first step; use --weights raw"
            )
    used = ("model", "ema") if weights == "ema" else ("model",)
    if not all(tensor.isfinite().all() for part in used for tensor in stored.tensors[part].values()):
        raise CheckpointError(f"{stored.folder}: its weights are not finite; use another --checkpoint")
    try:
        model.load_state_dict(stored.tensors["model"])
        if weights == "ema":
            _load_averages(model, stored.tensors["ema"])
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{stored.folder} does not fit the network {recipe.model.name}: {reason}"
        ) from None
    return model.eval()


def _load_averages(model: nn.Module, averages: Mapping[str, torch.Tensor]) -> None:
    """Replace all parameters, and those buffers that were averaged too; in the network's own dtypes.

    Raises:
        RuntimeError: the averages are not of this network.
    """
    missing, unknown = model.load_state_dict(averages, strict=False)
    parameters = dict(model.named_parameters())  # one of two names is averaged under the first
    if wrong := [name for name in missing if name in parameters] + unknown:
        raise RuntimeError(f"the averages differ in {', '.join(wrong)}")
