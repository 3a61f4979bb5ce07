"""What learns, from recipe and data alone, without logs or a folder: any step can be done again with it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch

from foveal.checkpoints.transfer import fits, load_initial, transfer
from foveal.data.input import evaluation_pipeline, training_pipeline, training_sampler, training_source
from foveal.data.loader import Loader
from foveal.data.source import keys
from foveal.device import find_device
from foveal.errors import CheckpointError, RecipeError
from foveal.faults import fault_point
from foveal.models.registry import build_model
from foveal.training.beginning import begin_from_images, check_beginning
from foveal.training.continuation import go_on
from foveal.training.ema import MovingAverage
from foveal.training.head import check_head, fit_head
from foveal.training.measure import resolve_speed
from foveal.training.optimizer import load_optimizer_tensors, optimizer_tensors
from foveal.training.resolution import check_sizes, image_size, scaled
from foveal.training.step import PreparedBatch, TrainStep
from foveal.views import check_views

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from foveal.checkpoints.layout import StoredCheckpoint
    from foveal.checkpoints.transfer import TransferReport
    from foveal.data.source import DataSet
    from foveal.recipe import Init, Recipe


class Learner:
    """A network, its optimizer and its averages, at some step of a recipe.

    What step number n trains on follows from the recipe and n; what it does, from that and from what
    :meth:`tensors` gives.

    Attributes:
        recipe: resolved: nothing in it is ``auto``.
        data: what is learnt from.
        source: the examples of an epoch.
        fingerprint: of these examples.
        sampler: their order.
        image_shape: height, width, channels of what the network sees in the end.
        device: where it computes.
        model: the network, with the raw weights.
        train_step: what updates it.
        average: the moving average of the weights, if the recipe asks for one.
        step: how many steps are done.
        first_step: how many were done when the run began: those of a TensorFlow checkpoint it goes on from.
        total_steps: how many there will be.
    """

    def __init__(self, recipe: Recipe, data: DataSet) -> None:
        """Begin at step 0, with random weights.

        Args:
            recipe: ``precision`` and ``compile`` may be ``auto``: they are measured now.
            data: what the recipe's ``data`` table names.

        Raises:
            FovealError: the recipe contradicts itself or does not fit the data.
        """
        self.data = data
        self.source = training_source(recipe, data)
        self.fingerprint = self.source.fingerprint()  # reads all of the data: once, and not at every save
        self.sampler = training_sampler(recipe, self.source)
        self.total_steps = recipe.steps or self.sampler.steps(recipe.epochs or 0)
        self._pipeline = training_pipeline(recipe, self.source)
        self.image_shape = self._pipeline.image_shape
        _check_shapes(recipe, data, self.image_shape)
        self.device = find_device(recipe.device)
        model = build_model(recipe.model, len(self.source.classes), self.image_shape, recipe.seed.init)
        self._resolution = tuple(recipe.resolution)
        check_sizes(recipe, model, self.image_shape)
        self.recipe = resolve_speed(recipe, model, self.prepare(0, full_size=True), self.total_steps)
        check_beginning(recipe, self.source, model)
        check_head(recipe, self.source, model)
        self.model = model.to(self.device).train()
        self.train_step = TrainStep(
            self.model, self.recipe, self.total_steps, self.device, self.sampler.steps_per_epoch
        )
        self.average = MovingAverage(self.model, recipe.ema, self.total_steps) if recipe.ema else None
        self.step = self.first_step = 0
        self._recomputed = -1  # the step at which the averages' statistics were measured last

    def initialise(self) -> list[str]:
        """Finish the first weights: from training images, where the network asks for it; ``init``; ``head``.

        The hash of what the recipe's ``init`` names, if it does, goes into the recipe.

        From a TensorFlow checkpoint whose weights all fit, training goes on at its step, with its averages
        and its optimizer's slots; then no head is fitted.

        Returns:
            What was done, in lines for people.

        Raises:
            CheckpointError: they cannot be read, do not fit, or are not those the run was begun with.
            RecipeError: the recipe ends before the step to go on at.
        """
        begin_from_images(self.recipe, self.data.train, self.model)
        report = self._load_initial(self.recipe.init) if self.recipe.init else None
        lines = list(report.lines()) if report else []
        if self.recipe.head is not None and not self.first_step:
            lines.append(fit_head(self.recipe, self.data, self.model))
        if self.average is not None and not self.first_step:
            self.average.reset()
        return lines

    def _load_initial(self, init: Init) -> TransferReport:
        initial = load_initial(init, self.recipe.model.name)
        training = initial.training if fits(self.model, initial, init) else None
        if training is not None and training.step > self.total_steps:
            raise RecipeError(
                f"{initial.origin} is of step {training.step:,}, the recipe ends at {self.total_steps:,}: "
                "give more --steps, or begin at step 0 with its weights: --set init.resume=false"
            )
        if training is None and init.weights == "auto":
            initial = initial.averaged()
        report = transfer(self.model, initial, init, len(self.source.classes))
        settled = init.model_copy(update={"sha256": initial.sha256})
        self.recipe = self.recipe.model_copy(update={"init": settled})
        if training is not None:
            if self.average is not None:
                self.average.reset()
            self.step = self.first_step = training.step
            notes = go_on(
                training, self.model, self.train_step.optimizer, self.recipe.optimizer.name, self.average
            )
            report = replace(report, notes=(*report.notes, *notes))
        return report

    def prepare(self, step: int, *, full_size: bool = False) -> PreparedBatch:
        """What step number ``step`` (from 0) trains on; depends on nothing else, and runs on any thread.

        With ``full_size``, images have the size that evaluation sees, whatever the recipe's ``resolution``.
        """
        fault_point("loader")
        prepared = self._pipeline(self.sampler.sample(step))
        images = torch.as_tensor(prepared.images).permute(0, 3, 1, 2)
        if not full_size:
            images = scaled(images, image_size(self._resolution, step, self.total_steps))
        targets = torch.as_tensor(prepared.targets)
        if self.device.type == "cuda":
            images, targets = (each if each.is_cuda else each.pin_memory() for each in (images, targets))
        return PreparedBatch(images, targets, prepared.sample, prepared.corrupt)

    def learn(self, batch: PreparedBatch) -> Tensor:
        """Do the present step; the batch's mean loss before it, float32, on the device."""
        loss = self.train_step(self.step, batch)
        self.step += 1
        if self.average is not None:
            self.average.update(self.step)
        return loss

    def averaged(self) -> Mapping[str, Tensor] | None:
        """The averages to evaluate with, or None where there are none (yet)."""
        if self.average is None or self.step == 0:
            return None
        self._recompute()
        return self.average.tensors

    def tensors(self) -> dict[str, Mapping[str, Tensor]]:
        """All that a checkpoint holds, by part and name: the live tensors, not copies."""
        parts: dict[str, Mapping[str, Tensor]] = {
            "model": self.model.state_dict(),
            "optimizer": optimizer_tensors(self.train_step.optimizer, self.model),
        }
        if self.average is not None:
            self._recompute()
            parts["ema"] = self.average.tensors
        return parts

    def load(self, stored: StoredCheckpoint) -> None:
        """Go on from a checkpoint.

        Raises:
            CheckpointError: it is not of this network, or lacks a part.
        """
        parts = stored.tensors
        for part in ("model", "optimizer", *(("ema",) if self.average is not None else ())):
            if part not in parts:
                raise CheckpointError(f"{stored.folder}: it has no part {part!r}: use another checkpoint")
        try:
            self.model.load_state_dict(parts["model"])
        except RuntimeError as error:
            raise CheckpointError(f"{stored.folder}: {' '.join(str(error).split())}") from None
        load_optimizer_tensors(self.train_step.optimizer, self.model, parts["optimizer"])
        if self.average is not None:
            self.average.load(parts["ema"])
        self.step = self._recomputed = stored.state["step"]
        self.first_step = stored.state.get("first_step", 0)

    def keys(self, step: int) -> list[str]:
        """Where the examples of step number ``step`` (from 0) come from."""
        return keys(self.source, self.sampler.sample(step).indices)

    def is_finite(self) -> bool:
        """Whether every weight is a number."""
        return bool(torch.stack([value.isfinite().all() for value in self.model.parameters()]).all())

    def _recompute(self) -> None:
        """Measure batch norm's statistics under the averages, if the recipe asks for that; once a step."""
        part = self.recipe.ema
        if self.average is None or part is None or part.statistics != "recompute":
            return
        if self.step not in (0, self._recomputed):
            threads = int(self.recipe.loader_threads)
            prepare = partial(self.prepare, full_size=True)
            with Loader(prepare, range(part.batches), threads=threads) as batches:
                images = (batch.images for batch in batches)
                self.average.recompute(self.model, images, self.recipe.precision, kernels=self.recipe.kernels)
            self._recomputed = self.step


def _check_shapes(recipe: Recipe, data: DataSet, trained: tuple[int, int, int]) -> None:
    """Raise RecipeError if evaluations would show the network images of another shape, or could not."""
    check_views(recipe.evaluation.tta, trained)
    for name, part in data.parts().items():
        if name != "train" and (shape := evaluation_pipeline(recipe, part).image_shape) != trained:
            raise RecipeError(
                f"the network would see images of {_times(trained)} in training, and of {_times(shape)} "
                f"from the {name} part: make them one size with augmentation and preprocessing"
            )


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
