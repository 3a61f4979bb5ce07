"""A learner in a run folder: what is logged, evaluated and saved on the way, and how a run goes on."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

from foveal.checkpoints.retention import retention_policies
from foveal.checkpoints.run_state import RUN_FIELDS, check_state
from foveal.checkpoints.saver import CheckpointSaver, check_space, stored_size
from foveal.data.corrupt import CorruptLedger
from foveal.data.loader import Loader
from foveal.data.stream import StreamSource
from foveal.errors import NonFiniteLossError, RecipeError, RunError, UnknownNameError
from foveal.evaluation import Evaluation, evaluate_network, find_metric, higher_is_better
from foveal.inference import load_run, needed_parts
from foveal.training.hooks import Every, FiniteLoss
from foveal.training.learner import Learner
from foveal.training.metrics import RunLog
from foveal.training.monitoring import Monitor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import Tensor, nn

    from foveal.checkpoints.layout import StoredCheckpoint
    from foveal.data.corrupt import CorruptRecord
    from foveal.data.source import DataSet
    from foveal.recipe import Evaluation as EvaluationPart
    from foveal.recipe import Recipe
    from foveal.run_folder import RunFolder
    from foveal.training.console import Console
    from foveal.training.step import PreparedBatch


class Session:
    """A run in progress.

    Attributes:
        learner: what learns.
        train_seconds: time spent training so far, over all restarts, without evaluation.
    """

    def __init__(
        self,
        recipe: Recipe,
        data: DataSet,
        console: Console,
        *,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        """Put a run together at its step 0; nothing is written anywhere, and every mistake shows here.

        Args:
            recipe: ``precision`` and ``compile`` may be ``auto``: they are measured now.
            data: what the recipe's ``data`` table names.
            console: what reports to a person.
            stopped: whether someone wants the run to stop: asked while data are waited for and evaluated.

        Raises:
            FovealError: the recipe contradicts itself or does not fit the data.
        """
        self.learner = learner = Learner(recipe, data)
        recipe = learner.recipe
        self._monitor = Monitor(learner)
        _check_metrics(recipe, len(learner.source.classes))
        if data.validation is None:
            _check_without_validation(recipe.evaluation)
        self._console = console
        self._stopped = stopped
        self._policies = retention_policies(recipe.checkpoint, recipe.evaluation.best, higher_is_better)

        self.train_seconds = 0.0
        self._best: dict[str, Any] | None = None
        self._stale = 0  # evaluations since the best one
        self._temperature = 1.0  # fitted to the validation part at its last evaluation
        self._validation: dict[str, Any] | None = None  # what the present step's evaluation gave
        self._pending = False  # whether the present step is still to be evaluated
        self._saved: tuple[int, bool] | None = None  # the step saved last, and whether it was pending then
        self._ledger = CorruptLedger(recipe.data.corrupt_budget, len(learner.source))
        self._last_loss: Tensor | None = None
        self._guard = FiniteLoss(lambda step: learner.keys(step - 1))
        self._log_due = Every(recipe.logging.every, learner.sampler)
        self._evaluation_due = Every(recipe.evaluation.every, learner.sampler)
        self._save_due = Every(recipe.checkpoint.every, learner.sampler)
        self._loader: Loader[PreparedBatch] | None = None
        self._since: float | None = None  # when the clock of training was started

    @property
    def recipe(self) -> Recipe:
        """Resolved: nothing in it is ``auto``."""
        return self.learner.recipe

    @property
    def step(self) -> int:
        """How many steps are done."""
        return self.learner.step

    @property
    def first_step(self) -> int:
        """How many were done before this run."""
        return self.learner.first_step

    @property
    def steps_done(self) -> int:
        """How many of them this run did, over all restarts."""
        return self.step - self.first_step

    @property
    def total_steps(self) -> int:
        """How many there will be, at most."""
        return self.learner.total_steps

    @property
    def finished(self) -> bool:
        """Whether all steps are done, or further ones have ceased to pay."""
        patience = self.recipe.evaluation.patience
        ceased = patience is not None and self._stale >= patience
        return not self._pending and (self.step >= self.total_steps or ceased)

    @property
    def evaluation_pending(self) -> bool:
        """Whether the present step is still to be evaluated: a stop came during its evaluation."""
        return self._pending

    @property
    def has_test(self) -> bool:
        """Whether the data have a test part."""
        return self.learner.data.test is not None

    def begin(self) -> None:
        """Load the first weights that the recipe names, if it does.

        Raises:
            CheckpointError: they cannot be used.
        """
        for line in self.learner.initialise():
            self._console.message(line)
        self._pending = self.recipe.evaluation.first and self.learner.data.validation is not None

    def open(self, folder: RunFolder) -> None:
        """Begin in a folder, or go on from the newest good checkpoint in it.

        Raises:
            RunError: it holds a run of another recipe or on other data.
            CheckpointError: its checkpoints cannot be used, or there is no room for more.
        """
        if folder.exists():
            folder.adopt(self.recipe)  # checked already, but not under the lock
        self._folder = folder
        manager = folder.checkpoints
        manager.remove_leftovers()
        had_checkpoints = bool(manager.steps())
        stored = manager.load("latest")
        if stored is not None:
            self._restore(stored)
        elif had_checkpoints:  # all of them damaged: what `begin` would have done is done now
            self.begin()
        if not self.finished:
            check_space(manager.folder, stored_size(self.learner.tensors()))
        folder.write_recipe(self.recipe)
        tested = self.test_record() is not None
        lengths = dict(stored.state["logs"]) if stored else {}
        self._log = RunLog(folder.path, None if tested else lengths, report=self._console.message)
        if self._log.fresh and (graph := self._monitor.graph()):
            self._log.graph(self.step, graph)
        self._ledger.restore(record["key"] for record in folder.corrupt_records())
        self._logged = (self.step, self.train_seconds, 0.0)  # step, seconds and waiting at the last record
        self._saver = CheckpointSaver(
            manager, self._policies, asynchronous=self.recipe.checkpoint.save == "async"
        )

    def batches(self) -> Loader[PreparedBatch]:
        """The remaining steps' batches, prepared ahead; training time counts from here."""
        self._since = time.perf_counter()
        threads = int(self.recipe.loader_threads)
        source = self.learner.source
        if isinstance(source, StreamSource):  # what comes next comes once, and to one thread
            threads = 1
            source.restart(self.step * self.recipe.batch_size)
            if self.step:
                self._console.message("the data are a stream, which begins anew")
        self._loader = Loader(
            self.learner.prepare,
            range(self.step, self.total_steps),
            threads=threads,
            report=self._console.message,
            stopped=self._stopped,
        )
        return self._loader

    def train(self, batch: PreparedBatch) -> None:
        """Do a step, and all that is due after it: logging, evaluating, saving.

        Raises:
            EvaluationStopped: a stop was asked for during the evaluation.
            NonFiniteLossError: training diverged.
            CheckpointError: a checkpoint could not be written.
        """
        loss = self._monitor.learn(batch)
        self._saver.check()
        self._last_loss = loss
        self._guard.add(self.step, loss)
        self._console.step(self.step)
        self._note_corrupt("train", batch.corrupt)
        last = self.step == self.total_steps
        record: dict[str, Any] = {"step": self.step}
        first = self.steps_done == 1 and self.recipe.logging.every.unit != "never"
        if self._log_due.due(self.step) or first or last:
            record |= self._measure(loss)
        record |= self._monitor.activations(batch)
        if len(record) > 1:
            self._log.metrics(record)
            self._console.metrics(record)
        self._log.summaries(self.step, self._monitor.summaries(batch))
        self._validation = None
        at_the_end = last and self.recipe.evaluation.every.unit != "never"
        due = self._evaluation_due.due(self.step) or at_the_end
        self._pending = due and self.learner.data.validation is not None
        self.complete_step()

    def complete_step(self) -> None:
        """Do what is due after the present step besides logging; a stop may have left it undone.

        Raises:
            As :meth:`train` does.
        """
        improved = self._pending and self._validate()
        if self._save_due.due(self.step) or improved:
            self.save()

    def save(self) -> None:
        """Save the state after the present step, unless it is saved already.

        Raises:
            NonFiniteLossError: the weights are not worth saving.
            CheckpointError: this save could not be begun, or the one before failed.
        """
        if self._saved == (self.step, self._pending):
            return
        self._check_finite()
        self._saver.save(self.step, self.learner.tensors(), self._state(), self._log.sync)
        self._saved = (self.step, self._pending)

    def validate(self) -> Evaluation:
        """Evaluate the present weights on the validation part, log the result, and leave all as it was.

        Raises:
            NonFiniteLossError: the weights are not worth evaluating.
            EvaluationStopped: a stop was asked for meanwhile.
        """
        return self._evaluate_present("validation", None if self.recipe.evaluation.calibrate else 1.0)

    def test(self) -> Evaluation:
        """Evaluate on the test part what the finished run's users will use, and log the result.

        Raises:
            CheckpointError: its best checkpoint is asked for, and cannot be used.
            EvaluationStopped: a stop was asked for meanwhile.
        """
        if self._used_step == self.step:
            return self._evaluate_present("test", self._temperature)
        stored = self._folder.load_checkpoint("best", needed_parts(self.recipe, None))
        best = load_run(self._folder.path, self.recipe, stored, None)
        return self._evaluate(
            "test",
            best.network,
            temperature=best.temperature,
            step=stored.state["step"],
            weights=best.weights,
        )

    def _evaluate_present(self, split: str, temperature: float | None) -> Evaluation:
        """Evaluate the present weights, averaged where the recipe asks for that."""
        self._check_finite()
        averages = self.learner.averaged()
        return self._evaluate(
            split,
            self.learner.model,
            averages=averages,
            temperature=temperature,
            step=self.step,
            weights="raw" if averages is None else "ema",
        )

    def _evaluate(self, split: str, network: nn.Module, **settings: Any) -> Evaluation:
        """Evaluate a network, log the result, and count no time of it as training."""
        running = self._since is not None
        self._stop_clock()
        try:
            result = evaluate_network(
                network,
                self.learner.data.part(split),
                self.recipe,
                metrics=self.recipe.evaluation.metrics,
                split=split,
                stopped=self._stopped,
                report=self._console.message,
                **settings,
            )
        finally:
            self._since = time.perf_counter() if running else None
        self._note_corrupt(split, result.corrupt)
        record = {**result.record(), "time": {"wall": time.time()}}
        self._log.evaluation(record)
        self._console.evaluation(record)
        return result

    def test_record(self) -> dict[str, Any] | None:
        """What the finished run's evaluation on the test part gave, if it was done."""
        if not self.finished:
            return None
        records = self._folder.evaluations()
        return next((r for r in records if r["split"] == "test" and r["step"] == self._used_step), None)

    @property
    def _used_step(self) -> int:
        """The step of the weights that the finished run's users will use."""
        best = self._best if self.recipe.evaluation.use == "best" else None
        return best["step"] if best else self.step

    def finish_saving(self) -> None:
        """Wait until what is being saved is on the disk; training time counts no further.

        Raises:
            CheckpointError: it could not be written.
        """
        self._saver.wait()
        self._stop_clock()

    def close(self) -> None:
        """Let a save that is under way come to its end, and close the logs."""
        self._saver.close()
        self._log.close()

    def _measured_seconds(self) -> float:
        return self.train_seconds + (time.perf_counter() - self._since if self._since else 0.0)

    def _stop_clock(self) -> None:
        self.train_seconds, self._since = self._measured_seconds(), None

    def _validate(self) -> bool:
        """Evaluate the validation part; whether the present weights are the best so far."""
        result = self.validate()
        self._validation, self._temperature = result.record(), result.temperature
        self._pending = False
        score = self._score()
        improved = self._best is None or score > self._best.get("score", -math.inf)
        if improved:
            self._best = {"step": self.step, "score": score}
        self._stale = 0 if improved else self._stale + 1
        if self.finished and self.step < self.total_steps:
            self._console.message(f"step {self.step}: {self._stale} evaluations without a new best: the end")
        return improved

    def _score(self) -> float:
        """The metric by which checkpoints are compared; higher is better."""
        name = self.recipe.evaluation.best
        value = float((self._validation or {})[name])
        return value if higher_is_better(name) else -value

    def _measure(self, loss: Tensor) -> dict[str, Any]:
        """The record of the present step."""
        self._guard.check()
        seconds, waited = self._measured_seconds(), self._loader.waited if self._loader else 0.0
        steps, elapsed = self.step - self._logged[0], seconds - self._logged[1]
        data_wait = (waited - self._logged[2]) / elapsed
        self._logged = (self.step, seconds, waited)
        return {
            "epoch": self.learner.sampler.epoch(self.step),
            "loss": loss.item(),
            "learning_rate": self.learner.train_step.learning_rate(self.step - 1),
            **self._monitor.losses(),
            "time": {
                "wall": time.time(),
                "seconds_per_batch": elapsed / steps,
                "examples_per_second": self.recipe.batch_size * steps / elapsed,
                "data_wait": data_wait,
            },
        }

    def _note_corrupt(self, part: str, records: Iterable[CorruptRecord]) -> None:
        """Enter damaged records into the ledger of the run; only new ones are reported."""
        for record in self._ledger.add(records):
            self._log.corrupt({"part": part, "key": record.key, "reason": record.reason})
            self._console.message(f"left out: {record.reason}")

    def _check_finite(self) -> None:
        """Raise NonFiniteLossError if a loss so far, or a weight now, is infinite or NaN."""
        self._guard.check()
        if not self.learner.is_finite():
            loss = self._last_loss.item() if self._last_loss is not None else float("nan")
            raise NonFiniteLossError(self.step, loss, self.learner.keys(max(self.step - 1, 0)), "weights")

    def _state(self) -> dict[str, Any]:
        """What a checkpoint holds beside tensors."""
        source = self.learner.data.train
        return {
            "step": self.step,
            "first_step": self.learner.first_step,
            "train_seconds": self._measured_seconds(),
            "validation": self._validation,
            "score": self._score() if self._validation else None,
            "evaluation_pending": self._pending,
            "best": self._best,
            "stale": self._stale,
            **({"temperature": self._temperature} if self.recipe.evaluation.calibrate else {}),
            **self._monitor.state(),
            "logs": self._log.lengths(),
            "classes": list(source.classes),
            "image_shape": list(self.learner.image_shape),
            "stored_shape": source.image_shape and list(source.image_shape),
            "data": self.learner.fingerprint,
        }

    def _restore(self, stored: StoredCheckpoint) -> None:
        """Go on from a checkpoint."""
        state = stored.state
        check_state(stored.folder, state, state["step"], RUN_FIELDS)
        if state["data"] != self.learner.fingerprint:
            raise RunError(
                f"{self._folder.path}: the training data are not those the run was begun with; "
                "give them with --data, or start anew with --fresh"
            )
        self.learner.load(stored)
        self._monitor.load(state)
        self.train_seconds = state["train_seconds"]
        self._best, self._stale = state.get("best"), state.get("stale", 0)
        self._temperature = state.get("temperature", 1.0)
        self._validation, self._pending = state.get("validation"), state.get("evaluation_pending", False)
        self._saved = (self.step, self._pending)
        if not self.finished:
            self._console.message(f"continuing from step {self.step} ({stored.folder})")


def _check_without_validation(evaluation: EvaluationPart) -> None:
    """Raise RecipeError for what only a validation part makes possible."""
    asked = {
        "patience": evaluation.patience,
        "use = 'best'": evaluation.use == "best",
        "calibrate": evaluation.calibrate,
    }
    if needing := [name for name, wanted in asked.items() if wanted]:
        raise RecipeError(
            f"evaluation.{needing[0]} needs a validation part: set data.validation or data.split"
        )


def _check_metrics(recipe: Recipe, classes: int) -> None:
    """Raise UnknownNameError for a metric there is not: now, not hours into training."""
    for name in recipe.evaluation.metrics:
        find_metric(name, classes)
    known = ["accuracy", "loss", *(["top5_accuracy"] if classes > 5 else []), *recipe.evaluation.metrics]
    by = recipe.checkpoint.keep_best
    for name in (recipe.evaluation.best, *(by if isinstance(by, dict) else ())):
        if name not in known:
            raise UnknownNameError("metric", name, known, "(others: add them to evaluation.metrics)")
