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
    training: Training,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    name: str,
    average: MovingAverage | None,
) -> Iterator[str]:
    """Put averages and slots where they fit, and say what was done, a line each.

    Args:
        training: where it stood.
        model: the network, which has its weights already.
        optimizer: of its parameters.
        name: the optimizer's in recipes; slots of another one are left as they are.
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
    wanted = [slot for slot in own if not slot.startswith(_COUNT)]
    theirs = f"those of {training.optimizer}" if training.optimizer else "none"
    if not wanted:
        yield f"the optimizer has no slots; the checkpoint has {theirs}"
    elif training.counterpart == name and training.slots.keys() >= set(wanted):
        slots = {slot: training.slots[slot].to(own[slot].dtype) for slot in wanted}
        counts = {slot: torch.full_like(own[slot], training.step) for slot in own if slot not in slots}
        load_optimizer_tensors(optimizer, model, slots | counts)
        yield f"slots of the optimizer: {len(wanted)}, {theirs}"
    else:
        yield f"slots of the optimizer: begin anew, the checkpoint has {theirs}"
