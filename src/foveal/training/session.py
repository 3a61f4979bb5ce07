"""All that a training run consists of, put together from a recipe, and saved and restored as one."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch

from foveal.data.corrupt import CorruptLedger
from foveal.data.input import evaluation_pipeline, training_pipeline, training_sampler, training_source
from foveal.data.loader import Loader
from foveal.data.source import keys
from foveal.data.stream import StreamSource
from foveal.device import find_device
from foveal.errors import CheckpointError, NonFiniteLossError, RecipeError, RunError
from foveal.evaluation import Evaluation, evaluate_network, find_metric
from foveal.models.registry import build_model, end_points
from foveal.training.ema import MovingAverage
from foveal.training.hooks import Every, FiniteLoss
from foveal.training.measure import resolve_speed
from foveal.training.metrics import RunLog
from foveal.training.optimizer import load_optimizer_tensors, optimizer_tensors
from foveal.training.step import PreparedBatch, TrainStep

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import Tensor, nn

    from foveal.data.corrupt import CorruptRecord
    from foveal.data.source import DataSet
    from foveal.recipe import Recipe
    from foveal.run_folder import RunFolder
    from foveal.training.console import Console


_PROBABILITIES = "probabilities"  # the softmax of the logits, which no module computes


class Session:
    """A run in progress.

    Attributes:
        recipe: resolved: nothing in it is ``auto``.
        step: how many steps are done.
        total_steps: how many there will be.
        train_seconds: time spent training so far, over all restarts, without evaluation.
    """

    def __init__(self, recipe: Recipe, data: DataSet, console: Console) -> None:
        """Put a run together at its step 0; nothing is written anywhere, and every mistake shows here.

        Args:
            recipe: ``precision`` and ``compile`` may be ``auto``: they are measured now.
            data: what the recipe's ``data`` table names.
            console: what reports to a person.

        Raises:
            FovealError: the recipe contradicts itself or does not fit the data.
        """
        source = training_source(recipe, data)
        self._data = data
        self._source = source
        self._fingerprint = source.fingerprint()  # reads all of the data: once, and not at every save
        self._console = console
        self._sampler = training_sampler(recipe, source)
        self.total_steps = recipe.steps or self._sampler.steps(recipe.epochs or 0)
        self._pipeline = training_pipeline(recipe, source)
        _check_shapes(recipe, data, self._pipeline.image_shape)
        self._device = find_device(recipe.device)
        model = build_model(recipe.model, len(source.classes), self._pipeline.image_shape, recipe.seed.init)
        _check_names(recipe, model, len(source.classes))
        self.recipe = resolve_speed(recipe, model, self.prepare(0), self.total_steps)
        self._model = model.to(self._device).train()
        self.train_step = TrainStep(self._model, self.recipe, self.total_steps, self._device)
        self._average = MovingAverage(self._model, recipe.ema.decay) if recipe.ema else None

        self.step = 0
        self.train_seconds = 0.0
        self._best: dict[str, Any] | None = None
        self._validation: dict[str, Any] | None = None
        self._ledger = CorruptLedger(recipe.data.corrupt_budget, len(source))
        self._last_loss: Tensor | None = None
        self._guard = FiniteLoss(self._keys)
        self._log_due = Every(recipe.logging.every, self._sampler)
        self._activations_due = Every(recipe.logging.activations_every, self._sampler)
        self._evaluation_due = Every(recipe.evaluation.every, self._sampler)
        self._save_due = Every(recipe.checkpoint.every, self._sampler)
        self._loader: Loader[PreparedBatch] | None = None
        self._resumed_at = time.perf_counter()

    def open(self, folder: RunFolder) -> None:
        """Begin in a folder, or go on from the newest good checkpoint in it.

        Raises:
            RunError: it holds a run of another recipe or on other data.
            CheckpointError: its checkpoints cannot be used.
        """
        if folder.exists():
            folder.adopt(self.recipe)  # checked already, but not under the lock
        self._folder = folder
        self._checkpoints = folder.checkpoints
        lengths = self._restore()
        folder.write_recipe(self.recipe)
        tested = self.test_record() is not None
        self._log = RunLog(folder.path, None if tested else lengths, report=self._console.message)
        self._ledger.restore(record["key"] for record in folder.corrupt_records())
        self._logged = (self.step, self.train_seconds, 0.0)  # step, seconds and waiting at the last record

    def prepare(self, step: int) -> PreparedBatch:
        """What step number ``step`` (from 0) trains on; depends on nothing else, and runs on any thread."""
        prepared = self._pipeline(self._sampler.sample(step))
        images = torch.as_tensor(prepared.images).permute(0, 3, 1, 2)
        targets = torch.as_tensor(prepared.targets)
        if self._device.type == "cuda":
            images, targets = (each if each.is_cuda else each.pin_memory() for each in (images, targets))
        return PreparedBatch(images, targets, prepared.sample, prepared.corrupt)

    def batches(self) -> Loader[PreparedBatch]:
        """The remaining steps' batches, prepared ahead; training time counts from here."""
        self._resumed_at = time.perf_counter()
        threads = int(self.recipe.loader_threads)
        if isinstance(self._source, StreamSource):  # what comes next comes once, and to one thread
            threads = 1
            self._source.restart(self.step * self.recipe.batch_size)
            if self.step:
                self._console.message("the data are a stream, which begins anew")
        self._loader = Loader(
            self.prepare,
            range(self.step, self.total_steps),
            threads=threads,
            report=self._console.message,
        )
        return self._loader

    def after_step(self, loss: Tensor, batch: PreparedBatch) -> None:
        """Average, check, log, evaluate and save, as far as each is due."""
        self.step += 1
        if self._average is not None:
            self._average.update(self.step)
        self._last_loss = loss
        self._guard.add(self.step, loss)
        self._console.step(self.step)
        self._note_corrupt("train", batch.corrupt)
        last = self.step == self.total_steps
        record: dict[str, Any] = {"step": self.step}
        if self._log_due.due(self.step) or last:
            record |= self._measure(loss)
        if self.recipe.logging.activations and self._activations_due.due(self.step):
            record["activations"] = self._activations(batch)
        if len(record) > 1:
            self._log.metrics(record)
            self._console.metrics(record)
        self._validation = None
        improved = False
        at_the_end = last and self.recipe.evaluation.every.unit != "never"
        if self._data.validation is not None and (self._evaluation_due.due(self.step) or at_the_end):
            improved = self._validate()
        if self._save_due.due(self.step) or improved:
            self.save()

    def save(self) -> None:
        """Save the state after the present step, unless it is saved already.

        Raises:
            NonFiniteLossError: the weights are not worth saving.
            CheckpointError: they could not be written.
        """
        if self.step in self._checkpoints.steps():
            return
        self._check_finite()
        tensors: dict[str, Mapping[str, Tensor]] = {
            "model": self._model.state_dict(),
            "optimizer": optimizer_tensors(self.train_step.optimizer, self._model),
        }
        if self._average is not None:
            tensors["ema"] = self._average.tensors
        self._checkpoints.save(self.step, tensors, self._state())
        self._checkpoints.prune(self.recipe.checkpoint.keep_last, self.recipe.checkpoint.keep_best)

    def evaluate(self, split: str) -> Evaluation:
        """Evaluate the present weights, log the result, and leave everything as it was.

        Raises:
            NonFiniteLossError: the weights are not worth evaluating.
        """
        self._check_finite()
        elapsed = self._measured_seconds()
        result = evaluate_network(
            self._model,
            self._data.part(split),
            self.recipe,
            metrics=self.recipe.evaluation.metrics,
            averages=self._average.tensors if self._average else None,
            step=self.step,
            weights="ema" if self._average else "raw",
            split=split,
        )
        self._resumed_at = time.perf_counter()  # the clock stood still meanwhile
        self.train_seconds = elapsed
        self._note_corrupt(split, result.corrupt)
        record = {**result.record(), "time": {"wall": time.time()}}
        self._log.evaluation(record)
        self._console.evaluation(record)
        return result

    def test_record(self) -> dict[str, Any] | None:
        """What the finished run's evaluation on the test part gave, if it was done."""
        if self.step < self.total_steps:
            return None
        records = self._folder.evaluations()
        return next((r for r in records if r["split"] == "test" and r["step"] == self.step), None)

    @property
    def has_test(self) -> bool:
        """Whether the data have a test part."""
        return self._data.test is not None

    def stop_clock(self) -> None:
        """Training time counts no further."""
        self.train_seconds = self._measured_seconds()
        self._resumed_at = time.perf_counter()

    def close(self) -> None:
        """Close the logs."""
        self._log.close()

    def _measured_seconds(self) -> float:
        return self.train_seconds + time.perf_counter() - self._resumed_at

    def _validate(self) -> bool:
        """Evaluate the validation part; whether the accuracy is the best so far."""
        self._validation = self.evaluate("validation").record()
        improved = self._best is None or self._validation["accuracy"] > self._best["accuracy"]
        if improved:
            self._best = {"step": self.step, "accuracy": self._validation["accuracy"]}
        return improved

    def _measure(self, loss: Tensor) -> dict[str, Any]:
        """The record of the present step."""
        self._guard.check()
        seconds, waited = self._measured_seconds(), self._loader.waited if self._loader else 0.0
        steps, elapsed = self.step - self._logged[0], seconds - self._logged[1]
        data_wait = (waited - self._logged[2]) / elapsed
        self._logged = (self.step, seconds, waited)
        return {
            "epoch": self._sampler.epoch(self.step),
            "loss": loss.item(),
            "learning_rate": self.train_step.learning_rate(self.step - 1),
            "time": {
                "wall": time.time(),
                "seconds_per_batch": elapsed / steps,
                "examples_per_second": self.recipe.batch_size * steps / elapsed,
                "data_wait": data_wait,
            },
        }

    def _activations(self, batch: PreparedBatch) -> dict[str, dict[str, float]]:
        """Statistics of named activations of the present batch and weights, in inference mode."""
        wanted = self.recipe.logging.activations
        self._model.eval()
        with (
            torch.inference_mode(),
            end_points(self._model, [name for name in wanted if name != _PROBABILITIES]) as found,
        ):
            found[_PROBABILITIES] = self._model(batch.images.to(self._device)).softmax(dim=1)
        self._model.train()
        return {name: _summary(found[name]) for name in wanted}

    def _note_corrupt(self, part: str, records: Iterable[CorruptRecord]) -> None:
        """Enter damaged records into the ledger of the run; only new ones are reported."""
        for record in self._ledger.add(records):
            self._log.corrupt({"part": part, "key": record.key, "reason": record.reason})
            self._console.message(f"left out: {record.reason}")

    def _check_finite(self) -> None:
        """Raise NonFiniteLossError if a loss so far, or a weight now, is infinite or NaN."""
        self._guard.check()
        if not torch.stack([value.isfinite().all() for value in self._model.parameters()]).all():
            loss = self._last_loss.item() if self._last_loss is not None else float("nan")
            raise NonFiniteLossError(self.step, loss, self._keys(self.step), "weights")

    def _keys(self, step: int) -> list[str]:
        return keys(self._source, self._sampler.sample(step - 1).indices)

    def _state(self) -> dict[str, Any]:
        """What a checkpoint holds beside tensors."""
        source = self._data.train
        return {
            "step": self.step,
            "train_seconds": self._measured_seconds(),
            "validation": self._validation,
            "best": self._best,
            "logs": self._log.lengths(),
            "classes": list(source.classes),
            "image_shape": list(self._pipeline.image_shape),
            "stored_shape": source.image_shape and list(source.image_shape),
            "data": self._fingerprint,
        }

    def _restore(self) -> dict[str, int]:
        """Load the newest good checkpoint, if any; the length each log had when it was saved."""
        self._checkpoints.remove_leftovers()
        stored = self._checkpoints.load("latest")
        if stored is None:
            return {}
        state = stored.state
        if state["data"] != self._fingerprint:
            raise RunError(
                f"{self._folder.path}: the training data are not those the run was begun with; "
                "give them with --data, or start anew with --fresh"
            )
        try:
            self._model.load_state_dict(stored.tensors["model"])
        except RuntimeError as error:
            raise CheckpointError(f"{stored.folder}: {' '.join(str(error).split())}") from None
        load_optimizer_tensors(self.train_step.optimizer, self._model, stored.tensors["optimizer"])
        if self._average is not None:
            self._average.load(stored.tensors["ema"])
        self.step, self.train_seconds = state["step"], state["train_seconds"]
        self._best, self._validation = state["best"], state["validation"]
        if self.step < self.total_steps:
            self._console.message(f"continuing from step {self.step} ({stored.folder})")
        return dict(state["logs"])


def _check_shapes(recipe: Recipe, data: DataSet, trained: tuple[int, int, int]) -> None:
    """Raise RecipeError if evaluations would show the network images of another shape than training."""
    for name, part in data.parts().items():
        if name != "train" and (shape := evaluation_pipeline(recipe, part).image_shape) != trained:
            raise RecipeError(
                f"the network would see images of {_times(trained)} in training, and of {_times(shape)} "
                f"from the {name} part: make them one size with augmentation and preprocessing"
            )


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _check_names(recipe: Recipe, model: nn.Module, classes: int) -> None:
    """Raise UnknownNameError for a metric or an activation there is not: now, not hours into training."""
    for name in recipe.evaluation.metrics:
        find_metric(name, classes)
    with end_points(model, [name for name in recipe.logging.activations if name != _PROBABILITIES]):
        pass


def _summary(values: Tensor) -> dict[str, float]:
    """Statistics of an activation."""
    values = values.float()
    return {
        "mean": values.mean().item(),
        "deviation": values.std(correction=0).item(),
        "min": values.min().item(),
        "max": values.max().item(),
        "zeros": (values == 0).float().mean().item(),
    }
