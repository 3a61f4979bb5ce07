"""Training once undisturbed and once killed again and again: do both end with the same bits?

The killed run is a chain of real processes. Each but the last dies by SIGKILL, at a fault point
(:mod:`foveal.faults`) or at a random moment; the same command then goes on. The first run settles what is
``auto`` in the recipe, and the killed one trains the recipe that it has left in its folder.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from foveal.data.catalog import open_data
from foveal.data.input import training_sampler, training_source
from foveal.data.stream import StreamSource
from foveal.errors import RunError, UsageError
from foveal.faults import POINTS, RANDOM, VARIABLE
from foveal.recipe import override, to_toml
from foveal.reproducibility.comparison import RunComparison, compare_logs, compare_runs
from foveal.run_folder import RunFolder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from foveal.data.download import ProgressReporter
    from foveal.data.source import DataSet
    from foveal.recipe import Recipe

_STEPS = 300  # trained unless asked otherwise, if the recipe has as many
_NARROWEST = 4  # steps from kill to kill
_PATIENCE = 20  # times as long as the undisturbed run a resumed one may take
_START = 60.0  # seconds besides, for a process to start
# Share of the run within which a point is used: batches are loaded ahead, and nothing is deleted at first.
_SPANS = {"loader": (0.0, 0.5), "deletion": (0.5, 1.0)}


@dataclass(frozen=True)
class Kill:
    """A death of the killed run.

    Attributes:
        number: from 1.
        point: the fault point, or ``random``.
        step: the number of the training step, from 0, that was begun last.
        resumed_from: the step of the newest checkpoint then on the disk; 0 if there was none.
        differences: between what was logged until then and the undisturbed run, and what is wrong with that
            checkpoint; none if all is well.
    """

    number: int
    point: str
    step: int
    resumed_from: int
    differences: tuple[str, ...]


@dataclass(frozen=True)
class Verification:
    """What came of it.

    Attributes:
        recipe: its name.
        steps: how many each run did.
        kills: in their order.
        not_applicable: fault points that the recipe never comes to, and why.
        comparison: of the finished runs.
    """

    recipe: str
    steps: int
    kills: tuple[Kill, ...]
    not_applicable: Mapping[str, str]
    comparison: RunComparison

    @property
    def identical(self) -> bool:
        """Whether nothing differed, at the end or on the way."""
        return not (self.comparison.differences or any(kill.differences for kill in self.kills))

    def report(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "recipe": self.recipe,
            "steps": self.steps,
            "identical": self.identical,
            "kills": [asdict(kill) for kill in self.kills],
            "not_applicable": dict(self.not_applicable),
            "compared": dict(self.comparison.compared),
            "differences": list(self.comparison.differences),
        }


def verify_resume(
    recipe: Recipe,
    folder: Path | None = None,
    *,
    kills: int = 10,
    steps: int | None = None,
    report: Callable[[str], None] = lambda _text: None,
    killed: Callable[[Kill], None] = lambda _kill: None,
    progress: ProgressReporter | None = None,
) -> Verification:
    """Train a recipe undisturbed and killed, in ``kills + 2`` processes, and compare the two runs.

    Both log every step, save and evaluate so often that it happens between any two kills, and keep two
    checkpoints and the best. Each fault point is used once, at a step drawn from the recipe's data seed; the
    other kills are random ones. After a kill that shows a difference there are no more: all would show it.

    Args:
        recipe: what to train.
        folder: where both runs are made, ``undisturbed`` and ``killed``, beside what each process printed; it
            must be new or empty. By default a temporary one, deleted at the end.
        kills: how many.
        steps: how many steps to train; by default the recipe's, but at most 300.
        report: told what is being done, in a line each.
        killed: told of each kill when the verdict on it is known.
        progress: told of downloads.

    Raises:
        UsageError: the data are a stream, the kills too few or too many, or the recipe is impossible.
        RunError: a process failed, hung, or did not die where it should have; or the folder cannot be used.
        CheckpointError: a checkpoint that one of the runs has ended with cannot be read.
    """
    if kills < len(POINTS):
        raise UsageError(f"{kills} kills are too few: there is one for each of {', '.join(POINTS)}")
    shortened = _shortened(recipe, open_data(recipe.data, progress=progress), kills, steps)
    with _new_folder(folder) as place:
        path = place / "recipe.toml"
        path.write_text(to_toml(shortened), encoding="utf-8")
        whole = RunFolder(place / "undisturbed")
        report(f"training {shortened.steps} steps undisturbed")
        begun = time.monotonic()
        _finish(_train(path, whole.path, place / "undisturbed.log"), "the undisturbed run")
        limit = _START + _PATIENCE * (time.monotonic() - begun)
        strikes, not_applicable = _plan(whole, kills, shortened.seed.data)
        report(f"training them again, killed {kills} times")
        trial = _Trial(RunFolder(place / "killed"), whole, limit)
        deaths = []
        for strike in strikes:
            deaths.append(trial.kill(strike))
            killed(deaths[-1])
            if deaths[-1].differences:
                report("the runs differ: training to the end without further kills")
                break
        comparison = trial.finish()
        last = whole.checkpoints.steps()[-1]
    return Verification(recipe.name, last, tuple(deaths), not_applicable, comparison)


@contextmanager
def _new_folder(path: Path | None) -> Iterator[Path]:
    """A folder to fill: this one, which is kept, or a temporary one."""
    if path is None:
        with TemporaryDirectory(prefix="foveal-verify-resume-") as name:
            yield Path(name)
        return
    try:
        path.mkdir(parents=True, exist_ok=True)
        if any(path.iterdir()):
            raise RunError(f"{path} is not empty: name a new folder with --keep")
    except OSError as error:
        raise RunError(f"{path}: cannot be made: {error.strerror}; name another folder with --keep") from None
    yield path.resolve()


class _Strike(NamedTuple):
    """A kill that is planned: ``delay`` seconds after the step began, if at a random moment."""

    point: str
    step: int
    delay: float

    def __str__(self) -> str:
        """As the process is told."""
        return f"{self.point}@{self.step}" + (f"+{self.delay:.6f}" if self.point == RANDOM else "")


class _Ended(NamedTuple):
    """How a process ended, and what it had printed on standard error."""

    code: int
    printed: str

    def __str__(self) -> str:
        if self.code < 0:
            return f"died of {signal.Signals(-self.code).name}"
        lines = self.printed.split("\n") if self.code else []
        said = next((line.removeprefix("error: ") for line in reversed(lines) if line.strip()), "")
        return f"ended with exit code {self.code}" + (f": {said}" if said else "")


class _Trial:
    """The run that is killed."""

    def __init__(self, run: RunFolder, whole: RunFolder, limit: float) -> None:
        self._run, self._whole, self._limit = run, whole, limit
        self._number = 0
        self._resumed_from = 0
        self._heads: dict[str, bytes] = {}  # what the logs held when that checkpoint was saved

    def kill(self, strike: _Strike) -> Kill:
        """Train until it dies where it should; what is then on the disk, looked at."""
        ended = self._train(str(strike))
        death = re.search(rf"killed: {strike.point} at step (\d+)", ended.printed)
        if ended.code == 0:
            raise RunError(
                f"kill {self._number}: the run came to its end before {strike.point!r}, awaited from step "
                f"{strike.step} on: give more steps, or fewer kills"
            )
        if ended.code != -signal.SIGKILL or death is None:
            raise RunError(f"kill {self._number}: the process that was to die at {strike.point!r} {ended}")
        step = int(death[1])
        differences = self._lost()
        differences += compare_logs(self._run.path, self._whole.path, until=step)
        differences += self._look()
        return Kill(self._number, strike.point, step, self._resumed_from, tuple(differences))

    def finish(self) -> RunComparison:
        """Train to the end, and compare the two runs."""
        _finish(self._train(""), "the killed run, resumed for the last time,")
        lost = self._lost()
        comparison = compare_runs(self._run.path, self._whole.path)
        return RunComparison((*lost, *comparison.differences), comparison.compared)

    def _train(self, fault: str) -> _Ended:
        self._number += 1
        log = self._run.path.with_name(f"killed-{self._number:03d}.log")
        return _train(self._whole.path / "recipe.toml", self._run.path, log, fault, self._limit)

    def _lost(self) -> list[str]:
        """What a restart wrote anew, though it was logged before the checkpoint that it should go on from."""
        found = []
        for name, head in self._heads.items():
            path = self._run.path / name
            if head and not (path.is_file() and path.read_bytes().startswith(head)):
                found.append(f"{name}: what was logged up to step {self._resumed_from} is no longer there")
        return found

    def _look(self) -> list[str]:
        """What is wrong with the newest checkpoint; notes what a restart finds there."""
        manager = self._run.checkpoints
        newest = max(manager.steps(), default=0)
        found = []
        if newest < self._resumed_from:
            found.append(f"the checkpoint of step {self._resumed_from} is no longer there")
        self._resumed_from, self._heads = newest, {}
        if newest and (problem := manager.problem(newest)):
            found.append(problem)
        elif newest:
            lengths = manager.state(newest)["logs"]
            self._heads = {name: self._head(name, length) for name, length in lengths.items()}
        return found

    def _head(self, name: str, length: int) -> bytes:
        path = self._run.path / name
        return path.read_bytes()[:length] if path.is_file() else b""


def _shortened(recipe: Recipe, data: DataSet, kills: int, steps: int | None) -> Recipe:
    """The recipe, of so many steps; what has to happen between two kills happens so often."""
    if isinstance(data.train, StreamSource):
        raise UsageError(
            f"{recipe.name}: its data are a stream, which cannot be read from the middle: such a run goes on "
            "when it is resumed, but never exactly"
        )
    source = training_source(recipe, data)
    whole = recipe.steps or training_sampler(recipe, source).steps(recipe.epochs or 0)
    total = min(whole, _STEPS) if steps is None else steps
    width = total // (kills + 1)
    if width < _NARROWEST:
        raise UsageError(
            f"{kills} kills need {_NARROWEST * (kills + 1)} steps or more, there are {total}: give more "
            "steps, or fewer kills"
        )
    settings = [
        f"steps={total}",
        "logging.every=1 step",
        f"checkpoint.every={width // 2} steps",
        "checkpoint.keep_last=2",
    ]
    if recipe.init is not None:
        settings.append("init.resume=false")  # the steps to verify are the first ones
    if recipe.evaluation.every.unit != "never":
        settings.append(f"evaluation.every={width} steps")
    recipe = override(recipe, settings)
    checkpoint = recipe.checkpoint.model_copy(update={"keep_steps": None, "keep_hours": None})
    return recipe.model_copy(update={"checkpoint": checkpoint})


def _plan(whole: RunFolder, kills: int, seed: int) -> tuple[list[_Strike], dict[str, str]]:
    """Kills at increasing steps of a run that is finished, and the fault points that it never came to."""
    state = whole.load_checkpoint("latest", ()).state
    last = state["step"]
    width = last // (kills + 1)  # the last such stretch is left, so that the last kill has room to happen
    if not width:
        raise UsageError(f"{kills} kills are too many for the {last} steps after which the run stopped early")
    generator = np.random.default_rng(seed)
    splits = {record["split"] for record in whole.evaluations()}
    not_applicable = {} if splits else {"evaluation": "nothing is evaluated"}
    points: list[str] = [point for point in POINTS if point not in not_applicable]
    points += [RANDOM] * (kills - len(points))
    spans = _SPANS if "validation" in splits else {**_SPANS, "evaluation": (1.0, 1.0)}  # after the last step
    order = np.argsort([generator.uniform(*spans.get(point, (0.0, 1.0))) for point in points])
    seconds = state["train_seconds"] / last
    strikes = [
        _Strike(points[point], number * width + int(generator.integers(width)), generator.uniform(0, seconds))
        for number, point in enumerate(order)
    ]
    return strikes, not_applicable


def _train(recipe: Path, run: Path, log: Path, fault: str = "", limit: float | None = None) -> _Ended:
    """Train in a process of its own, which is killed if this one is interrupted.

    Raises:
        RunError: it took longer than ``limit`` seconds.
    """
    command = [sys.executable, "-m", "foveal", "train", str(recipe), "--run", str(run)]
    environment = os.environ | {VARIABLE: fault}
    with (
        log.open("wb") as file,
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=file, env=environment) as process,  # noqa: S603 - this program
    ):
        try:
            code = process.wait(limit)
        except BaseException as error:
            process.kill()
            process.wait()  # after an interrupt, the end of the block waits for a moment only
            if isinstance(error, subprocess.TimeoutExpired):
                raise RunError(f"{run}: a process hung, and was killed after {limit:.0f} seconds") from None
            raise
    return _Ended(code, log.read_text(encoding="utf-8", errors="replace"))


def _finish(ended: _Ended, who: str) -> None:
    """Refuse a process that did not come to the end of its run."""
    if ended.code:
        kind = UsageError if ended.code == UsageError.exit_code else RunError
        raise kind(f"{who} {ended}")
