"""The mean of the weights of several checkpoints (Izmailov et al., 2018, arXiv:1803.05407)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from foveal.checkpoints.inspection import open_tensors
from foveal.checkpoints.tensor_difference import describe_form
from foveal.checkpoints.weights_file import require_new, write_weights
from foveal.errors import CheckpointError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from foveal.checkpoints.inspection import StoredTensors
    from foveal.checkpoints.tensor_file import TensorInfo


@dataclass(frozen=True, slots=True)
class Averaged:
    """What was written.

    Attributes:
        out: the file.
        sources: the checkpoint folders and files that the mean is of.
        averaged: how many tensors are means.
        equal: how many are no floating-point numbers, and were the same everywhere.
        last: names of those that are no floating-point numbers, and were taken from the last source.
        nbytes: of all tensors.
    """

    out: Path
    sources: tuple[Path, ...]
    averaged: int
    equal: int
    last: tuple[str, ...]
    nbytes: int


def average_weights(paths: Sequence[Path], out: Path, *, ema: bool = False) -> Averaged:
    """Write the mean of several networks' weights as a safetensors file.

    The mean is computed in float64 and rounded once, to the dtype of the tensor. Integers, such as batch
    norm's ``num_batches_tracked``, have no mean: they are taken from the last source.

    Args:
        paths: at least two runs (of each the latest checkpoint), checkpoints or safetensors files, with
            tensors of the same names, shapes and dtypes.
        out: the file to write (ends in .safetensors), which must not exist.
        ema: of checkpoints, take the averaged weights instead of the raw ones.

    Raises:
        UsageError: fewer than two sources, or ``out`` has another ending.
        CheckpointError: ``out`` exists or cannot be written, a source cannot be read, they do not match, or a
            weight is not finite. Nothing is written then.
    """
    if len(paths) < 2:
        raise UsageError("the mean of one is itself: name at least two checkpoints")
    require_new(out)
    opened = [open_tensors(path) for path in paths]
    sources = [_Weights(stored, _places(stored, ema=ema)) for stored in opened]
    for source in sources[1:]:
        _check_match(sources[0], source)
    result: dict[str, Tensor] = {}
    unequal: set[str] = set()
    for group in sources[0].in_groups():
        result |= _mean(sources, group, unequal)
    write_weights(out, result)
    means = sum(_has_mean(tensor.dtype) for tensor in result.values())
    return Averaged(
        out,
        tuple(stored.path for stored in opened),
        means,
        len(result) - means - len(unequal),
        tuple(sorted(unequal)),
        sum(tensor.nbytes for tensor in result.values()),
    )


@dataclass(frozen=True, slots=True)
class _Weights:
    """The network's tensors of a source: ``places`` has the names in it by the names in the network."""

    stored: StoredTensors
    places: Mapping[str, str]

    def info(self, name: str) -> TensorInfo:
        return self.stored.infos[self.places[name]]

    def in_groups(self) -> Iterator[list[str]]:
        names = {place: name for name, place in self.places.items()}
        for group in self.stored.in_groups(self.places.values()):
            yield [names[place] for place in group]

    def read(self, names: Sequence[str]) -> dict[str, Tensor]:
        tensors = self.stored.read([self.places[name] for name in names])
        return {name: tensors[self.places[name]] for name in names}


def _places(stored: StoredTensors, *, ema: bool) -> dict[str, str]:
    averages = stored.of_part("ema").infos if stored.is_checkpoint else {}
    if ema and not averages:
        raise CheckpointError(f"{stored.path}: holds no averaged weights: leave out --ema")
    if not stored.is_checkpoint:
        return {name: name for name in stored.infos}
    places = {name: f"model/{name}" for name in stored.of_part("model").infos}
    return places | {name: f"ema/{name}" for name in averages} if ema else places


def _check_match(first: _Weights, other: _Weights) -> None:
    where = f"{first.stored.path} and {other.stored.path} do not match"
    if alone := sorted(first.places.keys() ^ other.places.keys()):
        owner = first if alone[0] in first.places else other
        raise CheckpointError(
            f"{where}: tensor {alone[0]!r:.200} is only in {owner.stored.path}: average the same network"
        )
    for name in first.places:
        ours, theirs = first.info(name), other.info(name)
        if (ours.dtype, ours.shape) != (theirs.dtype, theirs.shape):
            raise CheckpointError(
                f"{where}: tensor {name!r:.200} is {describe_form(ours)} and {describe_form(theirs)}: "
                "average the same network"
            )


def _has_mean(dtype: torch.dtype) -> bool:
    return dtype.is_floating_point or dtype.is_complex


def _mean(sources: Sequence[_Weights], names: Sequence[str], unequal: set[str]) -> dict[str, Tensor]:
    """The means of some tensors, holding those of one source at a time; notes integers that are not equal."""
    sums: dict[str, Tensor] = {}
    for source in sources:
        for name, tensor in source.read(names).items():
            if _has_mean(tensor.dtype):
                if not tensor.isfinite().all():
                    raise CheckpointError(
                        f"{source.stored.path}: tensor {name!r:.200} is not finite: leave it out"
                    )
                wide = tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)
                sums[name] = sums[name].add_(wide) if name in sums else wide.clone()
            else:
                if name in sums and not torch.equal(sums[name], tensor):
                    unequal.add(name)
                sums[name] = tensor.clone()  # a view would hold on to all that was read with it
    return {
        name: (each / len(sources)).to(sources[0].info(name).dtype) if _has_mean(each.dtype) else each
        for name, each in sums.items()
    }
