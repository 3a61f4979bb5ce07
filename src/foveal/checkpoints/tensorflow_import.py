"""Weights of a TensorFlow checkpoint under a network's names, and the training that they come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from foveal.checkpoints.arrays import to_torch
from foveal.errors import CheckpointError
from foveal.tensorflow.checkpoint import list_checkpoints
from foveal.tensorflow.name_maps import load_name_map, read_name_map
from foveal.tensorflow.state_file import is_checkpoint
from foveal.tensorflow.table import is_table

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

    from foveal.tensorflow.checkpoint import Checkpoint
    from foveal.tensorflow.name_maps import NameMap


class Slot(NamedTuple):
    """A slot of an optimizer.

    Attributes:
        name: PyTorch's, in checkpoints of ours.
        role: TensorFlow's name for it.
        suffix: what TensorFlow 1.x adds to the variable's name.
    """

    name: str
    role: str
    suffix: str


class Counterpart(NamedTuple):
    """The optimizer of ours that goes on from one of TensorFlow's: its name in recipes, and the slots."""

    name: str
    slots: tuple[Slot, ...]


OPTIMIZERS: Final[Mapping[str, Counterpart]] = {
    "Momentum": Counterpart("sgd", (Slot("momentum_buffer", "momentum", "Momentum"),)),
    "Adam": Counterpart("adamw", (Slot("exp_avg", "m", "Adam"), Slot("exp_avg_sq", "v", "Adam_1"))),
    "RMSProp": Counterpart(
        "rmsprop", (Slot("average", "rms", "RMSProp"), Slot("momentum", "momentum", "RMSProp_1"))
    ),
}
"""By TensorFlow's names."""


@dataclass(frozen=True)
class Imported:
    """What a network gets of a TensorFlow checkpoint.

    Attributes:
        tensors: by the network's names, in PyTorch's layout, of the dtype they are stored in.
        missing: the network's tensors whose variables it does not have, but for optional ones.
        unused: variables of the checkpoint that the name map has no place for.
    """

    tensors: Mapping[str, Tensor]
    missing: tuple[str, ...]
    unused: tuple[str, ...]


@dataclass(frozen=True)
class Training:
    """Where training stood when a checkpoint was saved, besides the weights.

    Attributes:
        step: how many steps were done.
        averages: moving averages of weights, by the network's names; empty where there are none.
        optimizer: TensorFlow's name of the optimizer; None where it is not known, or has no slots.
        counterpart: the name in recipes of the one of ours that goes on with its slots, if there is one.
        slots: as ``SLOT/PARAMETER``, by PyTorch's names.
    """

    step: int
    averages: Mapping[str, Tensor]
    optimizer: str | None
    counterpart: str | None
    slots: Mapping[str, Tensor]


def is_tensorflow(path: Path) -> bool:
    """Whether it is the prefix of a TensorFlow checkpoint, its file, or a folder that has some."""
    if path.is_dir():
        return (path / "checkpoint").is_file() or bool(list_checkpoints(path))
    return is_checkpoint(path) and (not path.is_file() or is_table(path))


def find_name_map(model: str, names: Path | None) -> NameMap:
    """The name map in a file, or else the one of a network.

    Raises:
        FovealError: the file cannot be used, or there is no map for this network; says how to write one.
    """
    return load_name_map(model) if names is None else read_name_map(names)


def import_tensors(checkpoint: Checkpoint, names: NameMap, *, ema: bool = False) -> Imported:
    """Read the variables that a name map has a place for.

    Args:
        checkpoint: where they are.
        names: the network's names for them.
        ema: take the moving average of a variable where it has one.

    Raises:
        CheckpointError: there are no moving averages although ``ema``, or something cannot be read, is
            damaged, or has a shape that its layout does not fit.
    """
    if ema and not checkpoint.averages:
        raise CheckpointError(f"{checkpoint.path}: has no moving averages: take its own weights")
    variables = {each.variable for each in names.tensors.values()}
    places = {name: name for name in checkpoint.variables}
    tensors = _read(checkpoint, names, {**places, **checkpoint.averages} if ema else places)
    missing = tuple(name for name, each in names.tensors.items() if name not in tensors and not each.optional)
    unused = tuple(name for name in checkpoint.variables if name not in variables)
    return Imported(tensors, missing, unused)


def import_training(checkpoint: Checkpoint, names: NameMap) -> Training | None:
    """Read where training stood; None if the checkpoint does not say its step.

    Raises:
        CheckpointError: something cannot be read or is damaged, or the step is below 0.
    """
    step = checkpoint.global_step
    if step is None:
        return None
    if step < 0:
        raise CheckpointError(
            f"{checkpoint.path}: its step is {step}, below 0: take the weights alone: --set init.resume=false"
        )
    slots: dict[str, Tensor] = {}
    ours = OPTIMIZERS.get(checkpoint.optimizer or "")
    for slot in ours.slots if ours else ():
        found = _read(checkpoint, names, checkpoint.slots.get(slot.role, {}))
        slots |= {f"{slot.name}/{name}": value for name, value in found.items()}
    averages = _read(checkpoint, names, checkpoint.averages)
    return Training(step, averages, checkpoint.optimizer, ours and ours.name, slots)


def _read(checkpoint: Checkpoint, names: NameMap, places: Mapping[str, str]) -> dict[str, Tensor]:
    """The network's tensors, each from the place that stands for its variable, if there is one."""
    wanted = {
        name: (each, places[each.variable]) for name, each in names.tensors.items() if each.variable in places
    }
    arrays = checkpoint.read([place for _, place in wanted.values()])
    tensors = {}
    for name, (placement, place) in wanted.items():
        try:
            tensors[name] = to_torch(placement.to_network(arrays[place]))
        except CheckpointError as error:
            raise CheckpointError(f"{checkpoint.path}: {name}: {error}") from None
        except TypeError:
            dtype = arrays[place].dtype.name
            raise CheckpointError(f"{checkpoint.path}: {name}: variable {place!r} is of {dtype}") from None
    return tensors
