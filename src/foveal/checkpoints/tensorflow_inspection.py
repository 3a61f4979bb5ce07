"""What the variables of a TensorFlow checkpoint are and hold, and how those of two differ, one at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from foveal.checkpoints.arrays import to_torch
from foveal.checkpoints.inspection import TensorSummary, matching, summarise_tensor
from foveal.checkpoints.tensor_difference import (
    Kind,
    TensorComparison,
    TensorDifference,
    measure_difference,
)
from foveal.tensorflow.roles import step_candidates

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from foveal.tensorflow.checkpoint import Checkpoint

Role = Literal["variable", "moving average", "slot", "step", "optimizer scalar", "other"]

_SHOWN = 64  # bytes of a string that are printed


@dataclass(frozen=True, slots=True)
class Part:
    """What a variable of a checkpoint is for.

    Attributes:
        role: a weight or a statistic of the network, or what training keeps beside them.
        of: the variable that a moving average or a slot belongs to.
        slot: TensorFlow's name of the slot: ``momentum``, ``m``, ``v``, ...
    """

    role: Role
    of: str | None = None
    slot: str | None = None

    def __str__(self) -> str:
        """``slot m of dense/kernel``, ``moving average of dense/kernel``, or the role alone."""
        return " ".join(filter(None, (self.role, self.slot, self.of and f"of {self.of}")))


def parts(checkpoint: Checkpoint) -> dict[str, Part]:
    """What each variable of a checkpoint is for, by name; but for the step nothing is read."""
    known = {name: Part("variable") for name in checkpoint.variables}
    known |= {average: Part("moving average", name) for name, average in checkpoint.averages.items()}
    for slot, places in checkpoint.slots.items():
        known |= {place: Part("slot", name, slot) for name, place in places.items()}
    others = [name for name in checkpoint if name not in known]
    if checkpoint.global_step is not None:
        known |= {name: Part("step") for name in step_candidates(others)[:1]}
    return {name: known.get(name) or _part_of_other(checkpoint, name) for name in checkpoint}


def _part_of_other(checkpoint: Checkpoint, name: str) -> Part:
    """Of what belongs to no variable: the scalars of optimizers are numbers; counters and texts are not."""
    owned = name.rpartition("/")[0] in checkpoint  # as what a moving average without bias counts with
    is_scalar = not owned and checkpoint.shape(name) == () and checkpoint.dtype(name).kind == "f"
    return Part("optimizer scalar" if is_scalar else "other")


def summarise_variables(
    checkpoint: Checkpoint, pattern: str | None = None, *, values: bool = False
) -> Iterator[tuple[Part, TensorSummary]]:
    """Summarise variables in the checkpoint's order; every one is read, and its checksum verified.

    Strings (dtype ``string``) have no statistics; their size is that of the texts.

    Args:
        checkpoint: where they are.
        pattern: only those in whose names this regular expression is found.
        values: also give the numbers.

    Raises:
        UsageError: the pattern is not a regular expression, or no name matches it.
        CheckpointError: something cannot be read, or is damaged.
    """
    roles = parts(checkpoint)
    for name in matching(roles, pattern, str(checkpoint.path)):
        array = checkpoint.get(name)
        if array.dtype == np.object_:
            summary = _summary_of_strings(name, array, values=values)
        else:
            summary = summarise_tensor(name, to_torch(array), values=values)
        yield roles[name], summary


def _summary_of_strings(name: str, array: NDArray[Any], *, values: bool) -> TensorSummary:
    return TensorSummary(
        name=name,
        dtype=_dtype_name(array.dtype),
        shape=array.shape,
        elements=array.size,
        nbytes=sum(map(len, array.flat)),
        mean=None,
        std=None,
        min=None,
        max=None,
        norm=None,
        zeros=None,
        nan=0,
        inf=0,
        values=_printed(array) if values else None,
    )


def _printed(strings: NDArray[Any]) -> str:
    def shortened(text: Any) -> str:
        return repr(text) if len(text) <= _SHOWN else f"{text[:_SHOWN]!r}..."

    return np.array2string(strings, formatter={"object": shortened}, max_line_width=100)


def compare_checkpoints(
    first: Checkpoint, second: Checkpoint, pattern: str | None = None
) -> TensorComparison:
    """Compare variables of equal names, bit for bit, holding two of them in memory at a time.

    Args:
        first: a checkpoint, of any format.
        second: another.
        pattern: only those in whose names this regular expression is found.

    Raises:
        UsageError: the pattern is not a regular expression, or no name matches it.
        CheckpointError: something cannot be read, or is damaged.
    """
    everything = dict.fromkeys((*first.names(), *second.names()))
    names = matching(everything, pattern, f"{first.path}, {second.path}")
    found = [_difference(first, second, name) for name in names]
    differences = tuple(each for each in found if each is not None)
    return TensorComparison(len(names) - len(differences), differences)


def _difference(first: Checkpoint, second: Checkpoint, name: str) -> TensorDifference | None:
    forms = _form(first, name), _form(second, name)
    if None in forms:
        kind: Kind = "only in the second" if forms[0] is None else "only in the first"
        return TensorDifference(name, kind, forms)
    if first.shape(name) != second.shape(name):
        return TensorDifference(name, "shape", forms)
    alike = first.dtype(name) == second.dtype(name)
    measured = _measure(first.get(name), second.get(name))
    if alike and not measured[0]:
        return None
    return TensorDifference(name, "values" if alike else "dtype", forms, *measured)


def _form(checkpoint: Checkpoint, name: str) -> str | None:
    """Dtype and shape, ``float32 [3, 3]``; None where there is no such variable."""
    if name not in checkpoint:
        return None
    return f"{_dtype_name(checkpoint.dtype(name))} {list(checkpoint.shape(name))}"


def _dtype_name(dtype: np.dtype[Any]) -> str:
    return "string" if dtype == np.object_ else dtype.name


def _measure(first: NDArray[Any], second: NDArray[Any]) -> tuple[int, float | None, float | None]:
    """As ``measure_difference``, for strings too: they differ by no number, and none equals a number."""
    if np.object_ not in (first.dtype, second.dtype):
        return measure_difference(to_torch(first), to_torch(second))
    return int(np.count_nonzero(first != second)), None, None
