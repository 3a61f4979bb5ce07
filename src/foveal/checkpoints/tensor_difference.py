"""How the tensors of two checkpoints or tensor files differ, compared a few at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from foveal.checkpoints.inspection import CHUNK, dtype_name, finite, matching

if TYPE_CHECKING:
    from torch import Tensor

    from foveal.checkpoints.inspection import StoredTensors
    from foveal.checkpoints.tensor_file import TensorInfo

Kind = Literal["values", "dtype", "shape", "only in the first", "only in the second"]


@dataclass(frozen=True, slots=True)
class TensorDifference:
    """A tensor that is not the same in two places.

    Attributes:
        name: its name.
        kind: ``values``; ``dtype`` or ``shape``, with those of both in ``forms``; or where alone it is.
        forms: dtype and shape in the one and in the other; None where it is not.
        elements: how many elements differ in a bit; where dtypes do, in value. None where shapes do.
        max_abs: the largest difference, in float64; None if a differing element is not finite.
        max_relative: the largest difference as a share of the larger absolute value; None likewise.
    """

    name: str
    kind: Kind
    forms: tuple[str | None, str | None]
    elements: int | None = None
    max_abs: float | None = None
    max_relative: float | None = None


@dataclass(frozen=True, slots=True)
class TensorComparison:
    """What two have in common, as a number of tensors equal in every bit, and what not."""

    equal: int
    differences: tuple[TensorDifference, ...]


def compare_stored(
    first: StoredTensors, second: StoredTensors, pattern: str | None = None
) -> TensorComparison:
    """Compare tensors of equal names, bit for bit, holding few of them in memory at a time.

    Of a checkpoint and a file, the checkpoint's model weights are compared with the file.

    Args:
        first: what ``open_tensors`` gave.
        second: likewise.
        pattern: only those in whose names this regular expression is found.

    Raises:
        UsageError: the pattern is not a regular expression, or no name matches it.
        CheckpointError: something cannot be read, or is damaged.
    """
    if first.is_checkpoint != second.is_checkpoint:
        first, second = (each.of_part("model") if each.is_checkpoint else each for each in (first, second))
    names = matching({**first.infos, **second.infos}, pattern, f"{first.path}, {second.path}")
    forms = {name: (_form(first, name), _form(second, name)) for name in names}
    common = [name for name in names if None not in forms[name]]
    alike = [name for name in common if first.infos[name].shape == second.infos[name].shape]
    found: dict[str, TensorDifference | None] = {
        name: TensorDifference(name, "shape", forms[name]) for name in common
    }
    for group in first.in_groups(alike):
        pairs = first.read(group), second.read(group)
        found |= {name: _difference(name, pairs[0][name], pairs[1][name], forms[name]) for name in group}
    for name in set(names) - found.keys():
        kind: Kind = "only in the first" if name in first.infos else "only in the second"
        found[name] = TensorDifference(name, kind, forms[name])
    differences = tuple(each for name in names if (each := found[name]) is not None)
    return TensorComparison(len(names) - len(differences), differences)


def _form(stored: StoredTensors, name: str) -> str | None:
    return describe_form(stored.infos[name]) if name in stored.infos else None


def describe_form(info: TensorInfo) -> str:
    """Dtype and shape: ``float32 [3, 3]``."""
    return f"{dtype_name(info.dtype)} {list(info.shape)}"


def _difference(
    name: str, first: Tensor, second: Tensor, forms: tuple[str | None, str | None]
) -> TensorDifference | None:
    measured = measure_difference(first, second)
    if not measured[0] and first.dtype == second.dtype:
        return None
    kind: Kind = "values" if first.dtype == second.dtype else "dtype"
    return TensorDifference(name, kind, forms, *measured)


def measure_difference(first: Tensor, second: Tensor) -> tuple[int, float | None, float | None]:
    """Compare the elements of two tensors of one shape, in host memory.

    Returns:
        How many differ in a bit (where dtypes do, in value); by how much at most, in float64; and as a share
        of the larger absolute value. The last two are None if a differing element is not finite.
    """
    count, largest, relative = 0, 0.0, 0.0
    wide = torch.complex128 if first.is_complex() or second.is_complex() else torch.float64
    for start in range(0, first.numel(), CHUNK):
        ours, theirs = (each.reshape(-1)[start : start + CHUNK] for each in (first, second))
        a, b = ours.to(wide), theirs.to(wide)
        if ours.dtype == theirs.dtype:
            bits = (each.view(torch.uint8).view(len(each), each.element_size()) for each in (ours, theirs))
            differ = torch.ne(*bits).any(dim=1)
        else:
            differ = (a != b) & ~(a.isnan() & b.isnan())
        a, b = a[differ], b[differ]
        if len(a):
            count += len(a)
            delta, size = (a - b).abs(), torch.maximum(a.abs(), b.abs())
            largest = _larger(largest, delta)
            relative = _larger(relative, delta / torch.where(size == 0, 1, size))
    return count, finite(largest), finite(relative)


def _larger(value: float, candidates: Tensor) -> float:
    """The larger; NaN if one is, which ``max`` of torch hands on."""
    largest = float(candidates.max().item())
    return value if value > largest or math.isnan(value) else largest
