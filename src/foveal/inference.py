"""A run's network, made ready to be measured or used."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from foveal.device import find_device, resolve_machine
from foveal.errors import CheckpointError
from foveal.models.registry import build_model
from foveal.run_folder import RunFolder

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch
    from torch import nn

    from foveal.checkpoints.layout import StoredCheckpoint
    from foveal.recipe import Recipe

Weights = Literal["ema", "raw"]


@dataclass(frozen=True)
class TrainedRun:
    """A checkpoint of a run, loaded.

    Attributes:
        recipe: the run's, with the device that was asked for.
        network: in evaluation mode, on its device.
        weights: which of the checkpoint's it has.
        state: the checkpoint's: step, classes, image shape.
    """

    recipe: Recipe
    network: nn.Module
    weights: Weights
    state: Mapping[str, Any]

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device


def open_run(
    run: str | Path,
    *,
    checkpoint: str | int = "latest",
    weights: Weights | None = None,
    device: str | None = None,
    report: Callable[[str], None] = lambda _text: None,
) -> TrainedRun:
    """Load the network of a run.

    Args:
        run: the run folder.
        checkpoint: ``"latest"``, ``"best"`` (highest validation accuracy) or a step.
        weights: ``"ema"`` or ``"raw"``; by default the averages where the recipe keeps them.
        device: overrides the recipe's.
        report: told, in a line each, of damaged checkpoints.

    Raises:
        FovealError: the run or its checkpoint cannot be used.
    """
    folder = RunFolder(Path(run), report)
    recipe = folder.recipe()
    if device:
        recipe = recipe.model_copy(update={"device": device})
    recipe = resolve_machine(recipe)
    stored = folder.load_checkpoint(checkpoint, ("model", "ema") if recipe.ema else ("model",))
    chosen = weights or ("ema" if recipe.ema else "raw")
    network = _load_network(recipe, stored, chosen).to(find_device(recipe.device))
    return TrainedRun(recipe, network, chosen, stored.state)


def _load_network(recipe: Recipe, stored: StoredCheckpoint, weights: Weights) -> nn.Module:
    """The network of a checkpoint, ready for inference, on the CPU.

    Raises:
        CheckpointError: the averages are asked for but were not kept, the weights are not finite, or they
            do not fit the network.
    """
    state = stored.state
    height, width, channels = state["image_shape"]
    model = build_model(recipe.model, len(state["classes"]), (height, width, channels), seed=0)
    tensors = dict(stored.tensors["model"])
    if weights == "ema":
        if "ema" not in stored.tensors:
            raise CheckpointError(f"{stored.folder}: holds no averaged weights; use --weights raw")
        tensors |= stored.tensors["ema"]
    if not all(tensor.isfinite().all() for tensor in tensors.values()):
        raise CheckpointError(f"{stored.folder}: its weights are not finite; use another --checkpoint")
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{stored.folder} does not fit the network {recipe.model.name}: {reason}"
        ) from None
    return model.eval()
