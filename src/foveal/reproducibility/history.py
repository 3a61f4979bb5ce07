"""What a run folder tells of its run, and a learner brought to any step of it. Run folders are only read."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from foveal.checkpoints.layout import read_checkpoint, read_manifest, read_state
from foveal.checkpoints.run_state import RUN_FIELDS, check_state
from foveal.data.catalog import open_data
from foveal.data.loader import Loader
from foveal.data.stream import StreamSource
from foveal.device import resolve_machine
from foveal.errors import CheckpointError, DamagedCheckpointError, RunError
from foveal.reproducibility.comparison import read_log
from foveal.run_folder import RunFolder
from foveal.training.learner import Learner

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from foveal.checkpoints.layout import Manifest, StoredCheckpoint
    from foveal.data.download import ProgressReporter
    from foveal.recipe import Recipe
    from foveal.training.step import PreparedBatch

    Report = Callable[[str], None]


@dataclass(frozen=True)
class History:
    """What a run folder tells of its run.

    Attributes:
        path: the folder.
        recipe: complete and resolved.
        losses: those logged, by step (from 1).
        saved: the manifests of its checkpoints, by step; damaged ones are left out.
        fingerprint: of the examples it was trained on; None without a checkpoint.
    """

    path: Path
    recipe: Recipe
    losses: Mapping[int, float]
    saved: Mapping[int, Manifest]
    fingerprint: str | None

    @property
    def last(self) -> int:
        """The last step that is logged or saved; the run may have done more."""
        return max((0, *self.losses, *self.saved))

    def checkpoint(self, step: int) -> Path:
        """The folder of a checkpoint."""
        return RunFolder(self.path).checkpoints.path(step)


def read_history(run: Path, report: Report) -> History:
    """Read what a run folder tells of its run; what is damaged is reported and left out.

    Raises:
        RunError: it is no run folder.
    """
    folder = RunFolder(run)
    recipe = resolve_machine(folder.recipe())
    log = read_log(run, "metrics.jsonl")
    if log.flaw:
        report(f"{run / log.name}: {log.flaw}; it is used up to there")
    losses = {
        entry.step: loss
        for entry in log.entries
        if entry.step is not None and isinstance(loss := entry.values.get("loss"), float)
    }
    saved, fingerprint = {}, None
    for step in folder.checkpoints.steps():
        path = folder.checkpoints.path(step)
        try:
            manifest = read_manifest(path)
            state = read_state(path, manifest)
            check_state(path, state, step, RUN_FIELDS)
        except CheckpointError as error:
            _pass_over(path, error, report)
        else:
            saved[step], fingerprint = manifest, state["data"]
    return History(run, recipe, losses, saved, fingerprint)


def open_learner(
    history: History, *, data: str | Path | None = None, progress: ProgressReporter | None = None
) -> Learner:
    """Put together what learnt, at step 0 with random weights; call it within ``configured``.

    Raises:
        RunError: the data are others than the run's, or a stream.
        FovealError: they cannot be read.
    """
    recipe = history.recipe
    if data:
        recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"path": Path(data)})})
    opened = open_data(recipe.data, progress=progress)
    if isinstance(opened.train, StreamSource):
        raise RunError(f"{history.path}: it learnt from a stream, which cannot be read again")
    learner = Learner(recipe, opened)
    if history.fingerprint not in (None, learner.fingerprint):
        raise RunError(
            f"{history.path}: these are not the data it was trained on; say with --data where those are"
        )
    return learner


def read_usable(history: History, step: int, report: Report) -> StoredCheckpoint | None:
    """Read and verify a checkpoint of the run; None, and said so, if it is damaged, or was deleted just now.

    Raises:
        CheckpointError: it cannot be read for another reason.
    """
    path = history.checkpoint(step)
    try:
        return read_checkpoint(path)
    except CheckpointError as error:
        _pass_over(path, error, report)
        return None


def restore(learner: Learner, history: History, step: int, report: Report) -> int:
    """Bring a new learner to the newest usable checkpoint up to ``step``, or else to the first weights.

    Returns:
        The step of that checkpoint, or of the first weights.

    Raises:
        CheckpointError: it cannot be read although it is not damaged, or does not fit the network.
    """
    for saved in sorted((each for each in history.saved if each <= step), reverse=True):
        if stored := read_usable(history, saved, report):
            learner.load(stored)
            return saved
    learner.initialise()
    return learner.step


def batches(learner: Learner, steps: range) -> Loader[PreparedBatch]:
    """What a learner trains on in these steps (from 0), prepared ahead."""
    return Loader(learner.prepare, steps, threads=int(learner.recipe.loader_threads))


def advance(learner: Learner, step: int, progress: ProgressReporter | None = None) -> None:
    """Train until ``step`` steps are done."""
    steps = range(learner.step, step)
    with shown(steps, progress) as done, batches(learner, steps) as loader:
        for batch in loader:
            learner.learn(batch)
            done()


@contextmanager
def shown(steps: range, progress: ProgressReporter | None) -> Iterator[Callable[[], None]]:
    """Show that ``steps`` (from 0) are done again; call what it gives after each of them."""
    if not steps or progress is None:
        yield lambda: None
        return
    progress.start(f"replaying steps {steps[0] + 1} to {steps[-1] + 1}", len(steps), 0)
    try:
        yield lambda: progress.advance(1)
    finally:
        progress.finish()


def _pass_over(path: Path, error: CheckpointError, report: Report) -> None:
    """Go on without a damaged checkpoint, or one that its trainer has just deleted; raise any other error."""
    if isinstance(error, DamagedCheckpointError):
        report(f"{error}; it is passed over")
    elif path.exists():
        raise error
