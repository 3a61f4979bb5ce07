"""One training step: forward, backward, update; in micro-batches and in the precision the recipe asks for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from foveal.device import autocast
from foveal.errors import RecipeError
from foveal.faults import fault_point
from foveal.models.auxiliary import MayHaveAuxiliaryHead
from foveal.seeding import seed_for
from foveal.training.freezing import Freezing
from foveal.training.optimizer import build_optimizer
from foveal.training.schedule import learning_rate_factor, share_of

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from foveal.data.corrupt import CorruptRecord
    from foveal.data.sampler import Sample
    from foveal.models.auxiliary import WithAuxiliary
    from foveal.recipe import Recipe

_AUXILIARY_WEIGHT = 0.3  # of the published Inception networks


@dataclass(frozen=True)
class PreparedBatch:
    """What one step trains on.

    Attributes:
        images: float32 ``[B, C, H, W]``, channels_last.
        targets: int64 ``[B]``, or float32 ``[B, classes]`` where images were mixed.
        sample: which examples these are.
        corrupt: records that others stand in for.
    """

    images: Tensor
    targets: Tensor
    sample: Sample
    corrupt: tuple[CorruptRecord, ...] = ()


class TrainStep:
    """The function that learns: called with a batch, it updates the network and returns the loss.

    All it depends on is the recipe, the number of the step, the batch, the weights and the optimizer's slots.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        total_steps: int,
        device: torch.device,
        steps_per_epoch: float = 1.0,
    ) -> None:
        """Make the optimizer, with slots for all that ever learns.

        Args:
            model: the network, on its device.
            recipe: resolved.
            total_steps: of the run.
            device: what the network computes on.
            steps_per_epoch: for schedules that count epochs.

        Raises:
            RecipeError: ``freeze``, ``phases``, ``groups``, ``loss`` or the optimizer do not fit the network
                or the length of the run.
        """
        self._auxiliary_weight = _auxiliary_weight(model, recipe)
        self._freezing = Freezing(model, recipe, total_steps)
        self.optimizer = build_optimizer(recipe.optimizer, model, recipe.groups)
        # Images of several sizes have a graph each; the one for any size would be slower for all of them.
        dynamic = False if recipe.resolution else None
        self._network = torch.compile(model, dynamic=dynamic) if recipe.compile is True else model
        self._recipe = recipe
        self._total_steps, self._steps_per_epoch = total_steps, steps_per_epoch
        self._device = device

    def _arithmetic(self) -> AbstractContextManager[object]:
        recipe = self._recipe
        kernels = recipe.kernels and recipe.compile is not True  # they could not be compiled
        return autocast(self._device, recipe.precision, kernels=kernels)

    def learning_rate(self, step: int) -> float:
        """The learning rate of step number ``step``, from 0; parameters in ``groups`` may have another."""
        return self._rate(step, self._recipe.optimizer.learning_rate, None)

    def _rate(self, step: int, full: float, until: float | None) -> float:
        """The rate of parameters that learn until a share of all steps is done, or to the end."""
        steps = self._total_steps if until is None else share_of(self._total_steps, until)
        factor = learning_rate_factor(self._recipe.schedule, step, steps, self._steps_per_epoch)
        return full * factor * self._freezing.rate(step)

    def __call__(self, step: int, batch: PreparedBatch) -> Tensor:
        """Do step number ``step`` (from 0); the batch's mean loss, float32, on the device."""
        loss = self.backward(step, batch)
        fault_point("step")
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate(step, group["full_rate"], group["until"])
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss

    def backward(self, step: int, batch: PreparedBatch) -> Tensor:
        """Add the batch's gradients to the parameters that learn in step number ``step`` (from 0).

        Returns:
            The mean loss, float32, on the device; the gradients are each parameter's ``grad``, None for one
            that is frozen.

        Raises:
            RecipeError: one example is too few for the network's batch norm.
        """
        self._freezing.apply(step)
        size = len(batch.targets)
        micro = self._recipe.micro_batch or size
        losses = []
        for first in range(0, size, micro):
            part = slice(first, first + micro)
            position = int(batch.sample.positions[first])
            torch.manual_seed(seed_for(self._recipe.seed.data, f"dropout/step {step}", position))
            images = batch.images[part].to(self._device, non_blocking=True)
            targets = batch.targets[part].to(self._device, non_blocking=True)
            loss = self._loss(self._answer(images), targets) * (len(targets) / size)
            torch.autograd.backward(loss)
            losses.append(loss.detach())
        return losses[0] if len(losses) == 1 else torch.stack(losses).sum()

    def _answer(self, images: Tensor) -> Tensor | WithAuxiliary:
        """What the network gives for a micro-batch."""
        try:
            with self._arithmetic():
                outputs: Tensor | WithAuxiliary = self._network(images)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise RecipeError(
                f"{self._recipe.model.name} cannot train on one example at a time, of which batch norm makes "
                "nothing: give batch_size or micro_batch of 2 or more, or data.batching = 'drop_last'"
            ) from None
        return outputs

    def _loss(self, outputs: Tensor | WithAuxiliary, targets: Tensor) -> Tensor:
        """The mean loss of logits, and of those of an auxiliary head by its weight."""
        if isinstance(outputs, tuple):
            logits, auxiliary = outputs
            return self._loss(logits, targets) + self._auxiliary_weight * self._loss(auxiliary, targets)
        smoothing = self._recipe.loss.label_smoothing
        return functional.cross_entropy(outputs.float(), targets, label_smoothing=smoothing)


def _auxiliary_weight(model: nn.Module, recipe: Recipe) -> float:
    """What the loss of the network's auxiliary head is multiplied by; 0 without one.

    Raises:
        RecipeError: the recipe has a weight for it, and the network no head.
    """
    weight = recipe.loss.auxiliary_weight
    if isinstance(model, MayHaveAuxiliaryHead) and model.has_auxiliary_head:
        return _AUXILIARY_WEIGHT if weight is None else weight
    if weight:
        raise RecipeError(
            f"loss.auxiliary_weight = {weight}: {recipe.model.name} has no auxiliary head: "
            "leave it out, or give 0.0"
        )
    return 0.0
