"""Choosing precision and compilation once, by timing the first batch."""

from __future__ import annotations

import copy
import statistics
import time
from typing import TYPE_CHECKING

from foveal.compilation import can_compile
from foveal.data.sampler import Sample
from foveal.device import find_device
from foveal.training.step import PreparedBatch, TrainStep

if TYPE_CHECKING:
    from torch import nn

    from foveal.recipe import Recipe

_EXAMPLES = 256  # of a batch that are timed on a processor, where steps of large batches take seconds each
_GAIN = 0.9  # of float32's time, at most which bfloat16 must take: it loses digits, and times are noisy
_PAYS_OFF = 300.0  # seconds of eager training below which compilation (20 to 60 s) is not even measured


def resolve_speed(recipe: Recipe, model: nn.Module, batch: PreparedBatch, total_steps: int) -> Recipe:
    """Fill in ``precision`` and ``compile`` where they are ``auto``, by timing the first batch.

    The network is copied: its weights and statistics stay as they are. Where there is no C++ compiler,
    ``compile`` becomes false.
    """
    size = len(batch.targets)
    if find_device(recipe.device).type == "cpu":
        batch = _first(batch, _EXAMPLES)
    if recipe.precision == "auto":
        choices = [
            recipe.model_copy(update={"precision": p, "compile": False}) for p in ("float32", "bfloat16")
        ]
        plain, rounded = (_seconds_per_step(choice, model, batch) for choice in choices)
        recipe = choices[rounded < _GAIN * plain].model_copy(update={"compile": recipe.compile})
    if recipe.compile is True and not can_compile():
        return recipe.model_copy(update={"compile": False})
    if recipe.compile == "auto":
        eager = recipe.model_copy(update={"compile": False})
        recipe = eager
        eager_seconds = _seconds_per_step(eager, model, batch)
        if eager_seconds * size / len(batch.targets) * total_steps > _PAYS_OFF and can_compile():
            compiled = eager.model_copy(update={"compile": True})
            if _seconds_per_step(compiled, model, batch) < eager_seconds:
                recipe = compiled
    return recipe


def _first(batch: PreparedBatch, count: int) -> PreparedBatch:
    """The first examples of a batch."""
    sample = batch.sample
    part = Sample(sample.positions[:count], sample.indices[:count], sample.epochs[:count])
    return PreparedBatch(batch.images[:count], batch.targets[:count], part)


def _seconds_per_step(recipe: Recipe, model: nn.Module, batch: PreparedBatch) -> float:
    """The median time of a training step of a copy of ``model``."""
    device = find_device(recipe.device)
    step = TrainStep(copy.deepcopy(model).to(device).train(), recipe, 1_000_000_000, device)
    first = sum(phase.steps for phase in recipe.phases)  # from there on, everything learns
    times = []
    for number in range(8):
        start = time.perf_counter()
        step(first + number, batch).item()  # the value is asked for, so the device must have finished
        times.append(time.perf_counter() - start)
    return statistics.median(times[3:])
