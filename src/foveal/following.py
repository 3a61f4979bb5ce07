"""Evaluating every checkpoint of a run while another process trains it: each once, and none missed."""

from __future__ import annotations

import threading
import time
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveal.checkpoints.holding import Holding
from foveal.checkpoints.layout import cannot_write
from foveal.checkpoints.manager import CheckpointManager
from foveal.checkpoints.run_state import RUN_FIELDS, check_state
from foveal.data.catalog import open_data
from foveal.data.input import training_sampler, training_source
from foveal.device import configured, resolve_machine
from foveal.errors import CheckpointError, DamagedCheckpointError, RunError
from foveal.evaluation import EvaluationStopped, check_data, evaluate_network
from foveal.files import identity
from foveal.inference import default_weights, load_run, needed_parts
from foveal.run_folder import RunFolder
from foveal.training.follower_log import FollowerLog
from foveal.training.hooks import StopRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
    from typing import Self

    from foveal.data.download import ProgressReporter
    from foveal.data.source import DataSet
    from foveal.evaluation import Evaluation, Split
    from foveal.inference import Weights
    from foveal.recipe import Recipe

_POLL = 0.05  # seconds between looks at the run folder
_RENEWAL = 1.0  # seconds between signs of life
_SETTLED = 1.0  # seconds after which a change of a folder has another time than the one before it


@dataclass(frozen=True)
class Followed:
    """What came of following a run.

    Attributes:
        run: its folder.
        split: the part of the data.
        finished: whether training has ended, and all its checkpoints were read.
        stopped: the name of the signal that ended it before, if one did.
        new: how many checkpoints this call has evaluated.
        unusable: the steps of those that it could not, as they are damaged.
        evaluations: everything measured on that part with these weights so far, over all restarts, in the
            order of steps, as in ``evaluations-follow.jsonl``.
    """

    run: Path
    split: Split
    finished: bool
    stopped: str | None = None
    new: int = 0
    unusable: tuple[int, ...] = ()
    evaluations: tuple[Mapping[str, Any], ...] = ()

    def report(self) -> dict[str, Any]:
        """As plain values: the last evaluation's, and those of the whole."""
        return {
            **(self.evaluations[-1] if self.evaluations else {}),
            "run": str(self.run),
            "split": self.split,
            "finished": self.finished,
            "new": self.new,
            "unusable": list(self.unusable),
            "evaluations": list(self.evaluations),
        }

    def summary(self) -> str:
        """In a line."""
        if not self.evaluations:
            return f"{self.run}: no checkpoint was evaluated"
        best = max(self.evaluations, key=lambda record: record["accuracy"])
        return (
            f"{self.run}: {len(self.evaluations):,} checkpoints evaluated, {self.new:,} of them now; "
            f"{self.split} accuracy {self.evaluations[-1]['accuracy']:.2%} at step "
            f"{self.evaluations[-1]['step']:,}, best {best['accuracy']:.2%} at step {best['step']:,}"
        )


def follow(
    run: str | Path,
    *,
    split: Split = "test",
    weights: Weights | None = None,
    data: str | Path | None = None,
    device: str | None = None,
    metrics: Sequence[str] = (),
    timeout: float | None = None,
    report: Callable[[str], None] = lambda _text: None,
    evaluated: Callable[[Mapping[str, Any]], None] = lambda _record: None,
    progress: ProgressReporter | None = None,
) -> Followed:
    """Evaluate every checkpoint of a run once, as they come, until training has ended.

    The run may be trained meanwhile, in a process that is killed and started again, or not have begun, or be
    finished. This may be killed, too: the same call goes on. While it lives, and for ten minutes after it
    died, the trainer hands over what was not read before deleting it (``checkpoints/holding.py``). What is
    measured goes to ``evaluations-follow.jsonl`` in the run folder, and for TensorBoard to its folder
    ``eval``.

    In the main thread, SIGINT and SIGTERM end it between two batches.

    Args:
        run: the run folder; it is waited for.
        split: which part of the data.
        weights: ``"ema"`` or ``"raw"``; by default the averages where the recipe keeps them.
        data: the folder of the data's files, if not where the run found them.
        device: overrides the recipe's.
        metrics: names of further metrics, beside the recipe's.
        timeout: seconds without a new checkpoint after which to end; by default, never.
        report: told, in a line each, what is waited for, and of damaged checkpoints.
        evaluated: given each new line of ``evaluations-follow.jsonl``.
        progress: told of downloads.

    Raises:
        FovealError: the run or the data cannot be used, another process follows the run, or within the
            timeout there was no run.
    """
    folder = RunFolder(Path(run), report)
    with StopRequest() as stop:
        patience = _Patience(timeout)
        if not _await_run(folder, patience, stop):
            return Followed(folder.path, split, finished=False, stopped=stop.requested)
        folder.check()
        recipe = _recipe(folder, weights, data, device)
        with folder.following_lock(), closing(FollowerLog(folder.path, report=report)) as log:
            wanted = _Wanted(split, weights, (*recipe.evaluation.metrics, *metrics), recipe)
            done = {record["step"] for record in log.records if wanted.has(record)}
            with _Watch(folder, done) as watch:
                report(f"following {folder.path}: {len(done):,} checkpoints evaluated so far")
                examples = open_data(recipe.data, progress=progress)
                follower = _Follower(folder, wanted, examples, watch, log)
                with configured(recipe):
                    finished = follower.run(patience, stop, evaluated)
            records = sorted(filter(wanted.has, log.records), key=lambda record: record["step"])
    return Followed(
        folder.path,
        split,
        finished=finished,
        stopped=None if finished else stop.requested,
        new=len(records) - len(done),
        unusable=tuple(sorted(watch.unusable)),
        evaluations=tuple(records),
    )


def _await_run(folder: RunFolder, patience: _Patience, stop: StopRequest) -> bool:
    """Wait until a run has begun; False if a stop was asked for first."""
    if not folder.exists() and not folder.path.is_file():
        folder.report(f"waiting for a run in {folder.path}")
        while not folder.exists():
            if stop.requested:
                return False
            if patience.over():
                raise RunError(
                    f"{folder.path}: no run appeared in {patience.seconds:g} seconds: look at the name, or "
                    "give a longer --timeout"
                )
            time.sleep(_POLL)
    return True


def _recipe(
    folder: RunFolder, weights: Weights | None, data: str | Path | None, device: str | None
) -> Recipe:
    """The run's recipe, with what was asked for besides."""
    recipe = folder.recipe()
    if weights == "ema" and recipe.ema is None:
        raise CheckpointError(f"{folder.path}: its recipe keeps no averaged weights; use --weights raw")
    part = recipe.data.model_copy(update={"path": Path(data)}) if data else recipe.data
    return resolve_machine(recipe.model_copy(update={"data": part, "device": device or recipe.device}))


class _Patience:
    """How long to wait for news."""

    def __init__(self, seconds: float | None) -> None:
        self.seconds = seconds
        self.news()

    def news(self) -> None:
        """There are some: waiting begins anew."""
        self._since = time.monotonic()

    def over(self) -> bool:
        """Whether there were none for too long."""
        return self.seconds is not None and time.monotonic() - self._since > self.seconds


@dataclass(frozen=True)
class _Wanted:
    """What is measured of each checkpoint."""

    split: Split
    weights: Weights | None
    metrics: tuple[str, ...]
    recipe: Recipe

    def has(self, record: Mapping[str, Any]) -> bool:
        """Whether a line of the log says it."""
        weights = self.weights or default_weights(self.recipe, record["step"])
        return (record["split"], record["weights"]) == (self.split, weights)


class _Watch:
    """Holds every checkpoint as soon as it is there, by a thread, until it was read.

    Attributes:
        manager: the trainer's checkpoints.
        held: those that are held, to read them from.
        unusable: by step, those that cannot be read: which they were.
    """

    def __init__(self, folder: RunFolder, done: Collection[int]) -> None:
        """``done``: the steps that were evaluated before."""
        self.manager = folder.checkpoints
        self._holding = Holding(self.manager.folder, "follower", folder.report)
        self.held = CheckpointManager(self._holding.folder)
        self.unusable: dict[int, int | None] = {}
        self._folder = folder
        self._done = set(done)
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="foveal-follower", daemon=True)
        self._failure: Exception | None = None
        self._seen: int | None = None  # when the folder was changed last, if it was looked at since
        self._renewed = time.monotonic()

    def __enter__(self) -> Self:
        with self._access():
            self._holding.open()
            for step in self._done.intersection(self.manager.steps()):
                self._holding.mark_read(self._name(step))
        self.look()
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stopped.set()
        self._thread.join()

    def end(self) -> None:
        """Nothing more is expected: the trainer need hold nothing back."""
        self.__exit__()
        self._holding.close()

    def check(self) -> None:
        """Raise what the thread has failed with.

        Raises:
            RunError: the run was moved away.
            CheckpointError: a checkpoint cannot be held.
        """
        if self._failure is not None:
            raise self._failure

    def look(self) -> None:
        """Hold what has come since the last look.

        Raises:
            As :meth:`check` does.
        """
        with self._access():
            if time.monotonic() - self._renewed > _RENEWAL:
                self._holding.renew()
                self._renewed = time.monotonic()
            self._take()

    def next(self) -> int | None:
        """The lowest step of those that are held and yet to be read."""
        with self._access():
            for name in self._holding.names():
                step = int(name.removeprefix("step-"))
                if step in self._done:
                    self._holding.mark_read(name)
                elif self._is_unusable(step, self._holding.folder / name):
                    self._holding.drop(name)
                else:
                    return step
        return None

    def read(self, step: int) -> None:
        """The evaluation of a step is on the disk."""
        with self._access():
            self._done.add(step)
            self.unusable.pop(step, None)
            self._holding.mark_read(self._name(step))

    def pass_over(self, step: int) -> None:
        """A step cannot be evaluated, unless the trainer saves it again."""
        with self._access():
            self._holding.renew()  # else it may be the run that is gone
            self.unusable[step] = _stamp(self.held.path(step))
            self._holding.drop(self._name(step))

    def _run(self) -> None:
        try:
            while not self._stopped.wait(_POLL):
                self.look()
        except Exception as error:  # noqa: BLE001 - raised by check
            self._failure = error

    @contextmanager
    def _access(self) -> Iterator[None]:
        """Keep the other thread out, and say what is wrong with the folder."""
        try:
            with self._lock:
                yield
        except FileNotFoundError:
            raise RunError(
                f"{self._folder.path}: the run was moved away meanwhile: follow it where it is now, or the "
                "new one with the same command"
            ) from None
        except OSError as error:
            raise cannot_write(self._holding.folder, error) from error

    def _take(self) -> None:
        changed = self.manager.folder.stat().st_mtime_ns
        if changed == self._seen:
            return
        self._seen = changed if time.time() - changed / 1e9 > _SETTLED else None
        steps = self.manager.steps()
        for step in steps:
            place = self.manager.path(step)
            if step in self._done or self._is_unusable(step, place):
                continue
            try:
                taken = self._holding.take(self.manager.located(step), place.name)
            except DamagedCheckpointError as error:  # a link
                self._folder.report(str(error))
                self.unusable[step] = _stamp(place)
            else:
                self._seen = self._seen if taken else None
        self._holding.forget({self._name(step) for step in steps})

    def _is_unusable(self, step: int, place: Path) -> bool:
        return step in self.unusable and self.unusable[step] == _stamp(place)

    def _name(self, step: int) -> str:
        return self.manager.path(step).name


class _Follower:
    """Reads what is held, and knows when training has ended."""

    def __init__(
        self, folder: RunFolder, wanted: _Wanted, data: DataSet, watch: _Watch, log: FollowerLog
    ) -> None:
        self._folder, self._wanted, self._data, self._watch, self._log = folder, wanted, data, watch, log
        self._source = data.part(wanted.split)
        self._judged: object = None
        self._has_ended = False

    def run(
        self, patience: _Patience, stop: StopRequest, evaluated: Callable[[Mapping[str, Any]], None]
    ) -> bool:
        """Evaluate what comes; whether training has ended. False after a stop, or when patience was over."""
        patience.news()  # the run is there, and its data are
        while not stop.requested:
            self._watch.check()
            step = self._watch.next()
            if step is not None:
                try:
                    result = self._evaluate(step, stop)
                except EvaluationStopped:
                    break
                except CheckpointError as error:
                    self._watch.pass_over(step)
                    self._folder.report(f"{error}; step {step} was passed over")
                else:
                    record = self._log.add(result.record())
                    self._watch.read(step)
                    evaluated(record)
                patience.news()
            elif self._ended():
                self._watch.look()  # all that there will be is there now
                if self._watch.next() is None:
                    self._watch.end()
                    return True
            elif patience.over():
                self._folder.report(
                    f"nothing new for {patience.seconds:g} seconds, and training has not ended"
                )
                self._watch.end()
                break
            else:
                time.sleep(_POLL)
        return False

    def _evaluate(self, step: int, stop: StopRequest) -> Evaluation:
        """Measure a checkpoint that is held.

        Raises:
            CheckpointError: it cannot be used.
            EvaluationStopped: a stop was asked for.
        """
        wanted, recipe = self._wanted, self._wanted.recipe
        stored = self._watch.held.load(step, needed_parts(recipe, wanted.weights))
        assert stored is not None  # a step that is not there is an error
        check_state(stored.folder, stored.state, step, RUN_FIELDS)
        trained = load_run(self._folder.path, recipe, stored, wanted.weights)
        check_data(trained, self._source, str(recipe.data.path or recipe.data.name))
        return evaluate_network(
            trained.network,
            self._source,
            recipe,
            metrics=wanted.metrics,
            temperature=trained.temperature,
            step=step,
            weights=trained.weights,
            split=wanted.split,
            stopped=lambda: stop.requested is not None,
            report=self._folder.report,
        )

    def _ended(self) -> bool:
        """Whether the newest checkpoint is the last there will be, as far as the run's recipe says now."""
        steps = self._watch.manager.steps()
        if not steps:
            return False
        path = self._folder.path / "recipe.toml"
        newest = (steps[-1], identity(self._watch.manager.path(steps[-1])), identity(path))
        if newest != self._judged:
            self._judged, self._has_ended = newest, self._is_last(steps[-1])
        return self._has_ended

    def _is_last(self, step: int) -> bool:
        recipe = self._folder.recipe()
        total = recipe.steps
        if total is None:
            source = training_source(recipe, self._data)
            total = training_sampler(recipe, source).steps(recipe.epochs or 0)
        try:
            state = self._watch.manager.state(step)
        except CheckpointError:  # damaged: its name must do
            return step >= total
        limit = recipe.evaluation.patience
        ceased = limit is not None and state.get("stale", 0) >= limit
        return not state.get("evaluation_pending", False) and (step >= total or ceased)


def _stamp(folder: Path) -> int | None:
    """What tells a checkpoint from another of the same step, wherever it is held: when it was finished."""
    try:
        return (folder / "manifest.json").lstat().st_mtime_ns
    except OSError:
        return None
