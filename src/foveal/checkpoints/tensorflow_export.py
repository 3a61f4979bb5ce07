"""A run's checkpoint as TensorFlow would have saved it: weights, moving averages, slots, and the step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from foveal.checkpoints.arrays import to_numpy
from foveal.checkpoints.tensorflow_import import OPTIMIZERS
from foveal.errors import CheckpointError
from foveal.run_folder import RunFolder
from foveal.tensorflow.checkpoint import save_checkpoint
from foveal.tensorflow.name_maps import load_name_map

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from foveal.checkpoints.layout import StoredCheckpoint
    from foveal.recipe import OptimizerPart
    from foveal.tensorflow.name_maps import NameMap

_COUNTER = "num_batches_tracked"  # of batch norm, which TensorFlow's does without
_SLOTS = {each.name: each.slots for each in OPTIMIZERS.values()}


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        prefix: of the files.
        checkpoint: the folder of the checkpoint that it was made of.
        step: its step.
        weights, averages, slots: how many variables of each kind.
        nbytes: of all variables.
    """

    prefix: Path
    checkpoint: Path
    step: int
    weights: int
    averages: int
    slots: int
    nbytes: int


def export_run(
    run: Path, prefix: Path, which: int | str = "latest", names: NameMap | None = None
) -> Exported:
    """Write a checkpoint of a run as a V2 checkpoint of TensorFlow's.

    Variables are called as by TensorFlow 1.x: ``VARIABLE/ExponentialMovingAverage``, ``VARIABLE/Momentum``,
    ``global_step``. The state file beside them names this checkpoint as the latest.

    Args:
        run: the run folder.
        prefix: what the names of the files begin with, such as ``out/model.ckpt-1000``.
        which: a step, ``"latest"`` or ``"best"``.
        names: a name map of your own; by default the one that comes with the network.

    Raises:
        FovealError: there is no such checkpoint, no name map, or the map has no place for a tensor; or the
            files cannot be written.
    """
    folder = RunFolder(run)
    recipe = folder.recipe()
    stored = folder.load_checkpoint(which)
    writer = _Writer(names or load_name_map(recipe.model.name), stored)
    weights = dict(writer.variables(stored.tensors["model"], ""))
    averages = dict(writer.variables(stored.tensors.get("ema", {}), "/ExponentialMovingAverage"))
    slots = dict(writer.slots(stored.tensors.get("optimizer", {}), recipe.optimizer.name))
    step = stored.state["step"]
    variables = weights | averages | slots | _scalars(recipe.optimizer, step)
    try:
        save_checkpoint(prefix, variables)
    except OSError as error:
        raise CheckpointError(f"cannot write {prefix}: {error.strerror}") from error
    nbytes = sum(array.nbytes for array in variables.values())
    return Exported(prefix, stored.folder, step, len(weights), len(averages), len(slots), nbytes)


@dataclass(frozen=True)
class _Writer:
    """Gives a checkpoint's tensors TensorFlow's names and layout."""

    names: NameMap
    stored: StoredCheckpoint

    def variables(self, tensors: Mapping[str, Tensor], suffix: str) -> Iterator[tuple[str, NDArray[Any]]]:
        for name, tensor in tensors.items():
            if name.endswith(_COUNTER):
                continue
            if (placement := self.names.tensors.get(name)) is None:
                raise CheckpointError(
                    f"{self.stored.folder}: the name map has no variable for {name!r}: add it to a map "
                    "of your own, given with --names"
                )
            yield placement.variable + suffix, placement.to_tensorflow(to_numpy(tensor))

    def slots(self, tensors: Mapping[str, Tensor], optimizer: str) -> Iterator[tuple[str, NDArray[Any]]]:
        """Those that TensorFlow has too: not Adam's count of steps, nor what it has no optimizer for."""
        for slot in _SLOTS.get(optimizer, ()):
            own = {
                name.removeprefix(f"{slot.name}/"): tensor
                for name, tensor in tensors.items()
                if name.startswith(f"{slot.name}/")
            }
            yield from self.variables(own, f"/{slot.suffix}")


def _scalars(optimizer: OptimizerPart, step: int) -> dict[str, NDArray[Any]]:
    """The step, and for Adam the powers of its betas that the next update will use."""
    scalars: dict[str, NDArray[Any]] = {"global_step": np.array(step, np.int64)}
    if optimizer.name == "adamw":
        for number, beta in enumerate(optimizer.betas, 1):
            scalars[f"beta{number}_power"] = np.array(beta ** (step + 1), np.float32)
    return scalars
