"""Where two runs part: the first step at which they differ, and in what.

What they recorded bounds it: the first logged loss or checkpoint in which they differ, and the last
checkpoint before that in which they agree. From there both are done again in step. What that gives is held
against what each recorded: so a run is found out that did something else than its recipe and data say.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch

from foveal.checkpoints.tensor_file import TensorFileSummary
from foveal.device import configured
from foveal.recipe import differences
from foveal.reproducibility.comparison import compare_tensors
from foveal.reproducibility.history import batches, open_learner, read_history, read_usable, shown
from foveal.training.optimizer import optimizer_tensors

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from torch import Tensor

    from foveal.checkpoints.layout import StoredCheckpoint
    from foveal.data.download import ProgressReporter
    from foveal.reproducibility.history import History, Report
    from foveal.training.learner import Learner
    from foveal.training.step import PreparedBatch

    Parts = Mapping[str, Mapping[str, Tensor]]

Kind = Literal["batch", "loss", "weights"]
_KINDS: tuple[Kind, ...] = ("batch", "loss", "weights")  # in the order in which a step has them
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by the size of an element


@dataclass(frozen=True)
class Difference:
    """What two runs differ in.

    Attributes:
        kind: the batch or the loss of a step, or the weights (with slots and averages) after it.
        step: from 1; 0 for the first weights.
        details: a line each.
    """

    kind: Kind
    step: int
    details: tuple[str, ...]


@dataclass(frozen=True)
class Contradiction:
    """What a run recorded, and doing its steps again does not give.

    Attributes:
        run: its folder.
        kind: ``loss``, as logged, or ``weights``, as saved.
        step: of that record.
        since: the first step that may have gone otherwise: all that was recorded before agrees.
        details: a line each.
    """

    run: Path
    kind: Kind
    step: int
    since: int
    details: tuple[str, ...]


@dataclass(frozen=True)
class Bisection:
    """Two runs, compared.

    Attributes:
        runs: their folders.
        steps: how many steps both have recorded; these are compared.
        recipe: the semantic fields that differ, but for the name: of the first run, of the second.
        machine: device and threads where they differ: numbers may be rounded otherwise.
        data: the fingerprints of the training examples, where they differ.
        replayed: the steps that were done again; empty where the records tell all.
        found: the first difference of each kind.
        contradictions: records that doing the steps again does not give.
    """

    runs: tuple[Path, Path]
    steps: int
    recipe: Mapping[str, tuple[Any, Any]]
    machine: Mapping[str, tuple[Any, Any]]
    data: tuple[str, str] | None
    replayed: range
    found: Mapping[Kind, Difference]
    contradictions: tuple[Contradiction, ...]

    @property
    def first(self) -> Difference | None:
        """The first difference in what was computed; within a step, that which is the cause."""
        return min(self.found.values(), key=_order, default=None)

    @property
    def identical(self) -> bool:
        """Whether nothing differs."""
        return not (self.recipe or self.data or self.found or self.contradictions)

    def report(self) -> dict[str, Any]:
        """As plain values."""
        first = self.first
        return {
            "runs": [str(run) for run in self.runs],
            "steps": self.steps,
            "identical": self.identical,
            "first": {"kind": first.kind, "step": first.step} if first else None,
            "recipe": {key: list(pair) for key, pair in self.recipe.items()},
            "machine": {key: list(pair) for key, pair in self.machine.items()},
            "data": list(self.data) if self.data else None,
            **{kind: vars(self.found[kind]) if kind in self.found else None for kind in _KINDS},
            "not_reproduced": [{**vars(each), "run": str(each.run)} for each in self.contradictions],
            "replayed": [self.replayed[0], self.replayed[-1]] if self.replayed else None,
        }


def bisect(
    run_a: str | Path,
    run_b: str | Path,
    *,
    data: str | Path | None = None,
    report: Report = lambda _text: None,
    progress: ProgressReporter | None = None,
) -> Bisection:
    """Find the first step at which two runs differ, and in what.

    Of runs of different lengths, the steps that both have done are compared.

    Args:
        run_a: a run folder; nothing in it is changed.
        run_b: another.
        data: the folder of both runs' data, if not where they found them.
        report: told, in a line each, of damaged checkpoints and logs.
        progress: told of downloads, and of the steps that are done again.

    Raises:
        FovealError: a run, its data or its checkpoints cannot be used.
    """
    a, b = read_history(Path(run_a), report), read_history(Path(run_b), report)
    steps = min(a.last, b.last)
    recorded = _first_recorded(a, b)
    end = recorded.step if recorded else steps
    agreed = [step for step in sorted(a.saved.keys() & b.saved.keys()) if not _unequal_tensors(a, b, step)]
    walk = _Walk(range(end, end), {})
    fingerprints = a.fingerprint, b.fingerprint
    if recorded or end not in (0, *agreed):
        pair = _Rerun(a, data, progress), _Rerun(b, data, progress)
        fingerprints = pair[0].learner.fingerprint, pair[1].learner.fingerprint
        start = _begin(pair, [step for step in agreed if step < end], report)
        walk = _walk(pair, range(start, end), report, progress)
    if recorded:
        walk.found.setdefault(recorded.kind, recorded)
    machine = {key: (getattr(a.recipe, key), getattr(b.recipe, key)) for key in ("device", "threads")}
    changed = differences(a.recipe, b.recipe)
    return Bisection(
        runs=(a.path, b.path),
        steps=steps,
        recipe={key: pair for key, pair in changed.items() if key != "name"},
        machine={key: pair for key, pair in machine.items() if pair[0] != pair[1]},
        data=_unequal(*fingerprints),
        replayed=range(walk.steps.start + 1, walk.steps.stop + 1),
        found=walk.found,
        contradictions=walk.contradictions,
    )


# ---- what the runs recorded


def _first_recorded(a: History, b: History) -> Difference | None:
    """The first difference between the logs, or between checkpoints of the same step."""
    losses = (
        Difference("loss", step, (f"logged {a.losses[step]!r} / {b.losses[step]!r}",))
        for step in sorted(a.losses.keys() & b.losses.keys())
        if not _same(a.losses[step], b.losses[step])
    )
    weights = (
        Difference("weights", step, tuple(f"{name}: other bytes" for name in names))
        for step in sorted(a.saved.keys() & b.saved.keys())
        if (names := _unequal_tensors(a, b, step))
    )
    first = (next(losses, None), next(weights, None))
    return min((each for each in first if each), key=_order, default=None)


def _unequal_tensors(a: History, b: History, step: int) -> list[str]:
    """Which tensors of two checkpoints have other CRCs, or are in one only; of the parts that both have."""
    found = []
    for name in sorted(a.saved[step].files.keys() & b.saved[step].files.keys()):
        first, second = a.saved[step].files[name], b.saved[step].files[name]
        if isinstance(first, TensorFileSummary) and isinstance(second, TensorFileSummary):
            ours, theirs = first.tensors, second.tensors
            part = name.removesuffix(".safetensors")
            found += [f"{part} {key}" for key in sorted({*ours, *theirs}) if ours.get(key) != theirs.get(key)]
    return found


# ---- doing them again


class _Rerun:
    """A run that is done again, and held against what it recorded.

    Attributes:
        history: what it recorded.
        learner: what learns.
        confirmed: the last step whose record agrees.
    """

    def __init__(self, history: History, data: str | Path | None, progress: ProgressReporter | None) -> None:
        self.history = history
        with self.configured():
            self.learner = open_learner(history, data=data, progress=progress)
        self.confirmed = 0
        self._open = 1  # the first step that may have gone otherwise
        self._saved = set(history.saved)

    def configured(self) -> AbstractContextManager[None]:
        """Threads and determinism as the run had them."""
        return configured(self.history.recipe)

    def read(self, step: int, report: Report) -> StoredCheckpoint | None:
        """The run's checkpoint of that step, if there is one to use; a damaged one is reported once."""
        stored = read_usable(self.history, step, report) if step in self._saved else None
        if stored is None:
            self._saved.discard(step)
        return stored

    def begin(self, stored: StoredCheckpoint | None) -> None:
        """Go to a checkpoint, or to the first weights."""
        with self.configured():
            if stored is None:
                self.learner.initialise()
            else:
                self.learner.load(stored)
        self.confirmed, self._open = self.learner.step, self.learner.step + 1

    def learn(self, batch: PreparedBatch) -> float:
        """Do a step; the loss."""
        with self.configured():
            return self.learner.learn(batch).item()

    def tensors(self) -> Parts:
        """What training goes on from, without statistics that are measured for evaluations alone."""
        learner, ema = self.learner, self.history.recipe.ema
        parts: dict[str, Mapping[str, Tensor]] = {
            "model": learner.model.state_dict(),
            "optimizer": optimizer_tensors(learner.train_step.optimizer, learner.model),
        }
        if learner.average is not None and ema is not None:
            weights = {name for name, _ in learner.model.named_parameters()}
            parts["ema"] = {
                name: value
                for name, value in learner.average.tensors.items()
                if name in weights or ema.statistics != "recompute"
            }
        return parts

    def check(self, loss: float, report: Report) -> Contradiction | None:
        """Hold the step that was just done against what the run recorded of it."""
        step = self.learner.step
        logged = self.history.losses.get(step)
        if logged is not None:
            if not _same(logged, loss):
                return self._contradiction("loss", [f"logged {logged!r}, done again {loss!r}"])
            self.confirmed = self._open = step  # what this step made of the weights is still open
        stored = self.read(step, report)
        if stored is not None:
            with self.configured():
                found = _compare_parts(stored.tensors, self.learner.tensors())
            if found:
                return self._contradiction("weights", found)
            self.confirmed, self._open = step, step + 1
        return None

    def _contradiction(self, kind: Kind, details: Sequence[str]) -> Contradiction:
        return Contradiction(self.history.path, kind, self.learner.step, self._open, tuple(details))


class _Walk(NamedTuple):
    """What two runs gave that were done again: the steps (from 0), first differences, contradictions."""

    steps: range
    found: dict[Kind, Difference]
    contradictions: tuple[Contradiction, ...] = ()


def _begin(pair: Sequence[_Rerun], candidates: Sequence[int], report: Report) -> int:
    """Bring both runs to the last of the ``candidates`` that can be read, or to their first weights."""
    for step in reversed(candidates):
        stored = [each.read(step, report) for each in pair]
        if None not in stored:
            break
    else:
        step, stored = 0, [None, None]
    for each, checkpoint in zip(pair, stored, strict=True):
        each.begin(checkpoint)
    return step


def _walk(
    pair: tuple[_Rerun, _Rerun], steps: range, report: Report, progress: ProgressReporter | None
) -> _Walk:
    """Do both runs again in step, until they differ and what each recorded later agrees."""
    a, b = pair
    found: dict[Kind, Difference] = {}

    def note(kind: Kind, step: int, details: Sequence[str]) -> None:
        if details and kind not in found:
            found[kind] = Difference(kind, step, tuple(details))

    if steps.start == 0:
        note("weights", 0, _compare_parts(a.tensors(), b.tensors()))
    with (
        shown(steps, progress) as done,
        batches(a.learner, steps) as ours,
        batches(b.learner, steps) as theirs,
    ):
        for step, (batch_a, batch_b) in enumerate(zip(ours, theirs, strict=True), steps.start + 1):
            note("batch", step, list(_compare_batches(a.learner, batch_a, b.learner, batch_b)))
            losses = a.learn(batch_a), b.learn(batch_b)
            note("loss", step, [] if _same(*losses) else [f"{losses[0]!r} / {losses[1]!r}"])
            if "weights" not in found:
                note("weights", step, _compare_parts(a.tensors(), b.tensors()))
            checked = [each.check(loss, report) for each, loss in zip(pair, losses, strict=True)]
            done()
            contradictions = tuple(each for each in checked if each)
            confirmed = min(a.confirmed, b.confirmed)
            if contradictions or any(each.step < confirmed for each in found.values()):
                return _Walk(range(steps.start, step), found, contradictions)
    return _Walk(steps, found)


# ---- comparing


def _compare_batches(a: Learner, ours: PreparedBatch, b: Learner, theirs: PreparedBatch) -> Iterator[str]:
    """What differs: examples, where the data are the same; classes; pixels."""
    columns = {"classes": (ours.targets, theirs.targets), "pixels": (ours.images, theirs.images)}
    if a.fingerprint == b.fingerprint:
        indices = torch.from_numpy(ours.sample.indices), torch.from_numpy(theirs.sample.indices)
        columns = {"examples": indices, **columns}
    for what, (first, second) in columns.items():
        if (first.dtype, first.shape) != (second.dtype, second.shape):
            yield f"{what}: {first.dtype} {list(first.shape)} / {second.dtype} {list(second.shape)}"
            continue
        differ = (_bits(first).cpu() != _bits(second).cpu()).reshape(len(first), -1).any(dim=1)
        rows = differ.nonzero().flatten().tolist()
        if rows:
            pair = ((a, ours), (b, theirs))
            keys = (each.source.key(int(batch.sample.indices[rows[0]])) for each, batch in pair)
            yield f"{what}: {len(rows)} of {len(first)} differ, first {' / '.join(dict.fromkeys(keys))}"


def _compare_parts(a: Parts, b: Parts) -> list[str]:
    """What differs in the parts that both have, a line for each tensor."""
    found = []
    for part in (part for part in b if part in a):
        ours, theirs = a[part], b[part]
        same = {name for name in ours.keys() & theirs.keys() if _same_bits(ours[name], theirs[name])}
        rest = [{k: value for k, value in each.items() if k not in same} for each in (ours, theirs)]
        found += [f"{part} {line}" for line in compare_tensors(*rest)]
    return found


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(_bits(a), _bits(b.to(a.device)))


def _bits(tensor: Tensor) -> Tensor:
    """The elements as integers, so that NaNs of the same bits are equal, and zeros of two signs are not."""
    return tensor.detach().view(_BITS[tensor.element_size()])


def _same(a: float, b: float) -> bool:
    return a == b or (math.isnan(a) and math.isnan(b))


def _unequal(a: str | None, b: str | None) -> tuple[str, str] | None:
    return (a, b) if a and b and a != b else None


def _order(difference: Difference) -> tuple[int, int]:
    return difference.step, _KINDS.index(difference.kind)
