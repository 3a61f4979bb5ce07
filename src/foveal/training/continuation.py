"""Going on from training that was done elsewhere: its step, its moving averages, its optimizer's slots."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from foveal.training.optimizer import load_optimizer_tensors, optimizer_tensors

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from foveal.checkpoints.tensorflow_import import Training
    from foveal.training.ema import MovingAverage

_COUNT = "step/"  # of Adam's slots, how many updates there were


def go_on(
    training: Training, model: nn.Module, optimizer: torch.optim.Optimizer, average: MovingAverage | None
) -> Iterator[str]:
    """Put averages and slots where they fit, and say what was done, a line each.

    Args:
        training: where it stood.
        model: the network, which has its weights already.
        optimizer: of its parameters; slots that it lacks stay as they are.
        average: of its weights, now equal to them; None where the recipe asks for none.

    Raises:
        CheckpointError: an average or a slot has another shape than its parameter.
    """
    yield f"going on at step {training.step:,}"
    if average is not None:
        found = {name: value for name, value in training.averages.items() if name in average.tensors}
        average.load({**average.tensors, **found})
        yield f"moving averages: of {len(found)} tensors, {len(average.tensors) - len(found)} begin anew"
    elif training.averages:
        yield "moving averages: left out, as the recipe has no ema"
    own = optimizer_tensors(optimizer, model)
    names = [name for name in own if not name.startswith(_COUNT)]
    if all(name in training.slots for name in names):
        slots = {name: training.slots[name].to(own[name].dtype) for name in names}
        counts = {name: torch.full_like(own[name], training.step) for name in own if name not in slots}
        load_optimizer_tensors(optimizer, model, slots | counts)
    yield _slots(training, names)


def _slots(training: Training, names: list[str]) -> str:
    theirs = f"those of {training.optimizer}" if training.optimizer else "none"
    if not names:
        return f"the optimizer has no slots; the checkpoint has {theirs}"
    if all(name in training.slots for name in names):
        return f"slots of the optimizer: {len(names)}, {theirs}"
    return f"slots of the optimizer: begin anew, the checkpoint has {theirs}"
