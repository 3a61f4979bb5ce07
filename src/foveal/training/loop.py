"""Training, from a recipe to a finished run. This is the file to read first."""

from __future__ import annotations

from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveal.data.catalog import open_data
from foveal.device import configured, resolve_machine
from foveal.evaluation import EvaluationStopped
from foveal.faults import begin_step
from foveal.run_folder import RunFolder
from foveal.training.console import Silent
from foveal.training.hooks import StopRequest
from foveal.training.session import Session

if TYPE_CHECKING:
    from foveal.data.download import ProgressReporter
    from foveal.recipe import Recipe
    from foveal.training.console import Console


@dataclass(frozen=True)
class TrainResult:
    """What came of a run.

    Attributes:
        run: its folder.
        step: how many steps are done, over all restarts, and before the run where it went on from another's.
        finished: False if a signal stopped it; the same call goes on from there.
        train_seconds: time spent training, over all restarts, without evaluation.
        examples_per_second: over that time.
        accuracy: on the test part, of the weights that the recipe's ``evaluation.use`` names; None if the
            recipe or the data have no such part.
        first_step: how many of the steps were done before the run began; None if it began at 0.
    """

    run: Path
    step: int
    finished: bool
    train_seconds: float
    examples_per_second: float
    accuracy: float | None = None
    first_step: int | None = None

    def report(self) -> dict[str, Any]:
        """As plain values; without ``accuracy`` where nothing was tested."""
        values = {**vars(self), "run": str(self.run)}
        return {key: value for key, value in values.items() if value is not None}

    def summary(self) -> str:
        """In a line."""
        accuracy = f", test accuracy {self.accuracy:.2%}" if self.accuracy is not None else ""
        return (
            f"{self.run}: {self.step - (self.first_step or 0):,} steps in {self.train_seconds:.1f} s "
            f"({self.examples_per_second:,.0f} examples/s){accuracy}"
        )


def train(
    recipe: Recipe,
    run: str | Path | None = None,
    *,
    fresh: bool = False,
    console: Console | None = None,
    progress: ProgressReporter | None = None,
) -> TrainResult:
    """Train a recipe in a run folder, or go on where a run in that folder ended.

    Args:
        recipe: what to train; on going on, it must be the run's own but for operational fields.
        run: the folder; by default ``runs/NAME``.
        fresh: move an old run in that folder aside and begin anew.
        console: what reports to a person; nobody by default.
        progress: told of downloads.

    Raises:
        FovealError: the recipe, the data or the folder cannot be used, or training failed.
    """
    console = console or Silent()
    folder = RunFolder(Path(run or f"runs/{recipe.name}"), console.message)
    folder.check()
    if folder.exists() and not fresh:
        recipe = folder.adopt(recipe)
    data = open_data(recipe.data, progress=progress)
    recipe = resolve_machine(recipe, decodes=data.train.image_shape is None)
    stop = StopRequest()
    with configured(recipe):
        session = Session(recipe, data, console, stopped=lambda: stop.requested is not None)
        if fresh or not folder.checkpoints.steps():
            session.begin()
        folder.create(fresh=fresh)  # every mistake in the recipe has shown itself, and nothing was touched
        with folder.lock(), stop:
            session.open(folder)
            with closing(session):
                _train_steps(session, stop, console)
                accuracy, tested = _test(session)
    finished = session.finished and tested
    if not finished:
        console.message(
            f"stopped by {stop.requested} after step {session.step}: run the same command to continue"
        )
    examples = session.steps_done * recipe.batch_size
    rate = examples / session.train_seconds if session.train_seconds else 0.0
    return TrainResult(
        folder.path, session.step, finished, session.train_seconds, rate, accuracy, session.first_step or None
    )


def _train_steps(session: Session, stop: StopRequest, console: Console) -> None:
    """Do what is left of the run, or as much of it as there is before a stop is asked for."""
    if session.finished:
        session.save()  # nothing to do where it is saved; weights that needed no step are not
        session.finish_saving()
        return
    console.start(session.step, session.total_steps)
    try:
        with suppress(EvaluationStopped):
            if session.evaluation_pending:
                session.complete_step()
            if not session.finished:
                _train_batches(session, stop)
        session.save()
        session.finish_saving()
    finally:
        console.stop()


def _train_batches(session: Session, stop: StopRequest) -> None:
    with session.batches() as batches:
        for batch in batches:
            begin_step(session.step)
            session.train(batch)
            if stop.requested or session.finished:
                return


def _test(session: Session) -> tuple[float | None, bool]:
    """The accuracy on the test part, measured once; and whether nothing is left to do."""
    if not (session.finished and session.has_test and session.recipe.evaluation.final):
        return None, True
    done = session.test_record()
    try:
        return done["accuracy"] if done else session.test().accuracy, True
    except EvaluationStopped:
        return None, False
