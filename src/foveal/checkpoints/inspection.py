"""Looking into checkpoints and tensor files, one tensor at a time; nothing is moved or changed.

find_checkpoint(path, which="latest") -> Path        the folder of a checkpoint, given that, or a run
open_tensors(path, which="latest") -> StoredTensors  what a run, a checkpoint or a .safetensors file holds
stored.infos  stored.read(names)  stored.of_part("model")
"""

from __future__ import annotations

import math
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from foveal.checkpoints.layout import read_manifest, read_part, verify_checkpoint
from foveal.checkpoints.manager import CheckpointManager
from foveal.checkpoints.retention import retained, retention_policies
from foveal.checkpoints.run_state import saved_from
from foveal.checkpoints.tensor_file import TensorFileSummary, read_header, read_tensor_file
from foveal.errors import CheckpointError, UsageError
from foveal.run_folder import RunFolder

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
    from pathlib import Path

    from torch import Tensor

    from foveal.checkpoints.layout import Manifest
    from foveal.checkpoints.tensor_file import TensorInfo

_GROUP = 64 << 20  # bytes of tensors that are read together: few passes over the header, little memory
CHUNK = 1 << 18  # elements that are widened to float64 at a time
_SHOWN = 1000  # elements that are printed in full
_UNKNOWN_TO_NUMPY = {torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2}


def find_checkpoint(path: Path, which: int | str = "latest") -> Path:
    """The folder of a checkpoint.

    Args:
        path: a checkpoint folder; or a run folder or its ``checkpoints``, of which one is chosen.
        which: of a run: a step, ``"latest"`` or ``"best"``. It is not verified here.

    Raises:
        CheckpointError: nothing is there, or it is no checkpoint and has none of that kind.
    """
    if not path.exists():
        raise CheckpointError(f"{path}: there is nothing: name a run, a checkpoint or a .safetensors file")
    if _is_checkpoint(path):
        return path
    if manager := _manager(path):
        return manager.located(manager.candidates(which)[0])
    raise CheckpointError(
        f"{path}: neither a checkpoint nor a run with one: name a run, a checkpoint or a .safetensors file"
    )


def _is_checkpoint(path: Path) -> bool:
    return path.is_dir() and (path.name.startswith("step-") or os.path.lexists(path / "manifest.json"))


def _manager(path: Path) -> CheckpointManager | None:
    """The checkpoints of a run, or of its ``checkpoints``; None where there are none."""
    managers = map(CheckpointManager, (path / "checkpoints", path))
    return next((manager for manager in managers if manager.steps()), None)


def open_tensors(path: Path, which: int | str = "latest") -> StoredTensors:
    """Describe the tensors of a checkpoint (of a run: the one of ``which``) or of a safetensors file.

    Raises:
        DamagedCheckpointError: it is malformed, or not as it was written.
        CheckpointError: nothing that holds tensors is there, or it cannot be read.
    """
    if path.is_file():
        if path.suffix != ".safetensors":
            raise CheckpointError(f"{path}: not a .safetensors file: name one, or a run or a checkpoint")
        return StoredTensors(path, read_header(path))
    folder = find_checkpoint(path, which)
    manifest = read_manifest(folder)
    infos: dict[str, TensorInfo] = {}
    for part in manifest.parts:
        name = f"{part}.safetensors"
        summary = manifest.files[name]
        assert isinstance(summary, TensorFileSummary)
        header = read_header(folder / name, expected=summary, member=True)
        infos |= {f"{part}/{name}": info for name, info in header.items()}
    return StoredTensors(folder, infos, manifest)


@dataclass(frozen=True, slots=True)
class StoredTensors:
    """Tensors on disk.

    Attributes:
        path: the checkpoint folder, or the file.
        infos: dtype, shape and size by name, in the order stored. In a checkpoint the name of the part comes
            first: ``model/conv1.weight``, ``ema/conv1.weight``, ``optimizer/momentum_buffer/conv1.weight``.
        manifest: the checkpoint's, by which all that is read is verified; None for a file.
        prefix: what is left out of the names: ``model/`` where only that part is looked at.
    """

    path: Path
    infos: Mapping[str, TensorInfo]
    manifest: Manifest | None = None
    prefix: str = ""

    @property
    def is_checkpoint(self) -> bool:
        """Whether it is a checkpoint, and not a file."""
        return self.manifest is not None

    def of_part(self, part: str) -> StoredTensors:
        """Only the tensors of a part of a checkpoint, by their names in it; none if there is no such part."""
        prefix = f"{part}/"
        infos = {
            name.removeprefix(prefix): info for name, info in self.infos.items() if name.startswith(prefix)
        }
        return StoredTensors(self.path, infos, self.manifest, prefix)

    def read(self, names: Collection[str]) -> dict[str, Tensor]:
        """Read some tensors into host memory, verified where it is a checkpoint.

        Raises:
            DamagedCheckpointError: they are not as they were written.
            CheckpointError: they cannot be read, or one is not there.
        """
        if self.manifest is None:
            return read_tensor_file(self.path, names=names)
        wanted: dict[str, list[str]] = {}
        for name in names:
            part, _, rest = f"{self.prefix}{name}".partition("/")
            wanted.setdefault(part, []).append(rest)
        read: dict[str, Tensor] = {}
        for part, chosen in wanted.items():
            tensors = read_part(self.path, part, names=chosen, manifest=self.manifest)
            read |= {f"{part}/{name}".removeprefix(self.prefix): each for name, each in tensors.items()}
        return read

    def in_groups(self, names: Iterable[str] | None = None) -> Iterator[list[str]]:
        """Names (None: all) in groups that are best read together; no group is large unless a tensor is."""
        group: list[str] = []
        size = 0
        for name in self.infos if names is None else names:
            nbytes = self.infos[name].nbytes
            if group and size + nbytes > _GROUP:
                yield group
                group, size = [], 0
            group.append(name)
            size += nbytes
        if group:
            yield group


# ---- what a run has


@dataclass(frozen=True, slots=True)
class Listed:
    """A checkpoint in the list of a run's.

    Attributes:
        step: the step it was saved at.
        saved: when its last file was written, in seconds since 1970; None if there is none.
        nbytes: of all its files.
        metrics: what the validation part gave at that step, by name.
        kept: why it is kept, a reason each; empty if the next pruning deletes it.
        problem: what is wrong with it; None if its manifest and its state are good.
    """

    step: int
    saved: float | None
    nbytes: int
    metrics: Mapping[str, float]
    kept: tuple[str, ...]
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Listing:
    """The checkpoints of a run, in order, and the names of those that were found damaged and moved away."""

    checkpoints: tuple[Listed, ...]
    damaged: tuple[str, ...]


def list_checkpoints(run: Path, higher_is_better: Callable[[str], bool]) -> Listing:
    """List a run's checkpoints by what their manifests and states say; tensors are not read.

    Args:
        run: the run folder.
        higher_is_better: whether a metric of a name is one to maximise.

    Raises:
        FovealError: it is no run.
    """
    folder = RunFolder(run)
    recipe, manager = folder.recipe(), folder.checkpoints
    policies = retention_policies(recipe.checkpoint, recipe.evaluation.best, higher_is_better)
    reasons = retained(manager.saved(), policies)
    for step in manager.kept_by_name():
        reasons.setdefault(step, []).append("kept by name")
    listed = tuple(_listed(manager, step, tuple(reasons.get(step, ()))) for step in manager.steps())
    damaged = manager.folder / "damaged"
    names = sorted(path.name for path in damaged.iterdir()) if damaged.is_dir() else []
    return Listing(listed, tuple(names))


def _listed(manager: CheckpointManager, step: int, kept: tuple[str, ...]) -> Listed:
    metrics: Mapping[str, float] = {}
    files: list[os.stat_result] = []
    problem = None
    try:
        with suppress(OSError):  # its trainer deletes it just now
            files = [path.lstat() for path in manager.located(step).iterdir()]
        metrics = saved_from(step, manager.state(step)).metrics
    except CheckpointError as error:
        problem = str(error)
    saved, nbytes = max((each.st_mtime for each in files), default=None), sum(each.st_size for each in files)
    return Listed(step, saved, nbytes, metrics, kept, problem)


def verify_stored(path: Path) -> dict[Path, str | None]:
    """Read all of a run's checkpoints, of one checkpoint, or of a safetensors file; nothing is moved.

    A file has no checksums: only its structure is verified.

    Returns:
        By checkpoint folder (or file) None, or what is wrong with it.

    Raises:
        CheckpointError: nothing of the kind is there.
    """
    if not _is_checkpoint(path) and (manager := _manager(path)):
        return {manager.path(step): problem for step, problem in manager.verify().items()}
    siblings = CheckpointManager(path.parent)
    named = next((step for step in siblings.steps() if siblings.path(step) == path), None)
    if named is not None:
        return {path: siblings.problem(named)}
    if not path.is_file():
        find_checkpoint(path)  # refuses what is none
    try:
        _read_all(path)
    except CheckpointError as error:
        return {path: str(error)}
    return {path: None}


def _read_all(path: Path) -> None:
    if path.is_dir():
        verify_checkpoint(path)
        return
    stored = open_tensors(path)
    for group in stored.in_groups():
        stored.read(group)


# ---- what tensors hold


@dataclass(frozen=True, slots=True)
class TensorSummary:
    """A tensor in numbers, computed in float64.

    Attributes:
        name: as ``StoredTensors.infos`` has it.
        dtype: as PyTorch calls it, ``float32``.
        shape: its sizes.
        elements: how many numbers it has.
        nbytes: its size.
        mean: of the finite elements, as are the next four; the parts of complex ones count as two. None where
            there are none, or float64 cannot hold it.
        std: standard deviation (of the elements, not an estimate of anything).
        min: the lowest.
        max: the highest.
        norm: root of the sum of squares.
        zeros: the fraction of the elements that is zero; None of an empty tensor.
        nan: how many are NaN.
        inf: how many are infinite.
        values: the numbers as NumPy prints them, with ``...`` for most of more than 1000, if asked for.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    elements: int
    nbytes: int
    mean: float | None
    std: float | None
    min: float | None
    max: float | None
    norm: float | None
    zeros: float | None
    nan: int
    inf: int
    values: str | None = None


def summarise(
    stored: StoredTensors, pattern: str | None = None, *, values: bool = False
) -> Iterator[TensorSummary]:
    """Summarise tensors in the order stored, holding few of them in memory at a time.

    Args:
        stored: what ``open_tensors`` gave.
        pattern: only those in whose names this regular expression is found.
        values: also give the numbers.

    Raises:
        UsageError: the pattern is not a regular expression, or no name matches it.
        CheckpointError: something cannot be read, or is damaged.
    """
    for group in stored.in_groups(matching(stored.infos, pattern, str(stored.path))):
        for name, tensor in stored.read(group).items():
            yield summarise_tensor(name, tensor, values=values)


def matching(names: Iterable[str], pattern: str | None, where: str) -> list[str]:
    """Those of the names in which a regular expression (None: any) is found.

    Raises:
        UsageError: it is not a regular expression, or is found in none; the message begins with ``where``.
    """
    if pattern is None:
        return list(names)
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise UsageError(f"the filter {pattern!r} is not a regular expression: {error}") from None
    chosen = [name for name in names if expression.search(name)]
    if not chosen:
        raise UsageError(f"{where}: no tensor's name matches {pattern!r}: list them without a filter")
    return chosen


def summarise_tensor(name: str, tensor: Tensor, *, values: bool = False) -> TensorSummary:
    """Summarise one tensor in host memory, of any dtype; ``values``: also give the numbers."""
    numbers = tensor.reshape(-1)
    if tensor.is_complex():
        numbers = torch.view_as_real(numbers).reshape(-1)
    moments = _Moments()
    for start in range(0, len(numbers), CHUNK):
        moments.add(numbers[start : start + CHUNK].to(torch.float64))
    return TensorSummary(
        name=name,
        dtype=dtype_name(tensor.dtype),
        shape=tuple(tensor.shape),
        elements=tensor.numel(),
        nbytes=tensor.nbytes,
        mean=finite(moments.mean if moments.count else math.nan),
        std=finite(math.sqrt(moments.deviations / moments.count) if moments.count else math.nan),
        min=finite(moments.low),
        max=finite(moments.high),
        norm=finite(math.sqrt(moments.squares) if moments.count else math.nan),
        zeros=moments.zeros / len(numbers) if len(numbers) else None,
        nan=moments.nan,
        inf=len(numbers) - moments.count - moments.nan,
        values=_printed(tensor) if values else None,
    )


class _Moments:
    """What is needed of the finite elements seen so far, and counts of the others."""

    def __init__(self) -> None:
        self.count, self.zeros, self.nan = 0, 0, 0
        self.mean, self.deviations, self.squares = 0.0, 0.0, 0.0
        self.low, self.high = math.inf, -math.inf

    def add(self, piece: Tensor) -> None:
        """Add a float64 vector: moments are joined by formula 2.1 of Chan, Golub, LeVeque (1979)."""
        self.zeros += int((piece == 0).sum())
        self.nan += int(piece.isnan().sum())
        piece = piece[piece.isfinite()]
        if not len(piece):
            return
        mean, added, total = piece.mean(), len(piece), self.count + len(piece)
        shift = mean.item() - self.mean
        self.deviations += ((piece - mean) ** 2).sum().item() + shift * shift * self.count * added / total
        self.squares += (piece * piece).sum().item()
        self.mean += shift * added / total
        self.count = total
        self.low, self.high = min(self.low, piece.min().item()), max(self.high, piece.max().item())


def finite(value: float) -> float | None:
    """The value, or None for NaN and infinities, which JSON has no numbers for."""
    return value if math.isfinite(value) else None


def dtype_name(dtype: torch.dtype) -> str:
    """``float32``."""
    return str(dtype).removeprefix("torch.")


def _printed(tensor: Tensor) -> str:
    plain = tensor.float() if tensor.dtype in _UNKNOWN_TO_NUMPY else tensor
    return np.array2string(plain.numpy(), threshold=_SHOWN, max_line_width=100)
