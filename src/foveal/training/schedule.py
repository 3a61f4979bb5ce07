"""The learning rate as a function of the step."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from foveal.recipe import Constant, Cosine, Exponential, Linear, OneCycle

if TYPE_CHECKING:
    from foveal.recipe import SchedulePart


def learning_rate_factor(
    schedule: SchedulePart, step: int, total: int, steps_per_epoch: float = math.nan
) -> float:
    """What the full learning rate is multiplied by.

    Args:
        schedule: the recipe's ``schedule`` table.
        step: number of the step, from 0.
        total: number of steps of the whole run.
        steps_per_epoch: may be a fraction; for schedules that count epochs.

    Returns:
        A factor in [0, 1].
    """
    match schedule:
        case OneCycle(peak=peak, start=start, final=final):
            return _one_cycle(step / total, peak, start, final)
        case Exponential(factor=factor, every=every, staircase=staircase, warmup_steps=warmup):
            span = every.amount * (steps_per_epoch if every.unit == "epochs" else 1)
            elapsed = step / span
            # Three times 33.3 steps are 100, however they are rounded.
            value = factor ** (math.floor(elapsed + 1e-9) if staircase else elapsed)
        case Constant(warmup_steps=warmup):
            value = 1.0
        case Cosine(final=final):
            warmup = round(schedule.warmup * total)
            value = final + (1 - final) * _fall(_progress(step, warmup, total))
        case Linear(final=final):
            warmup = round(schedule.warmup * total)
            value = 1 - (1 - final) * _progress(step, warmup, total)
    return value * min(1.0, (step + 1) / (warmup + 1))


def share_of(total: int, share: float) -> int:
    """How many of ``total`` steps a share of them is; at least one of a share above 0."""
    return max(round(share * total), int(share > 0))


def _progress(step: int, warmup: int, total: int) -> float:
    """From 0 at the end of the warm-up to 1 just after the last step."""
    return max(0, step - warmup) / max(1, total - warmup)


def _fall(share: float) -> float:
    """Half a cosine: 1 at 0, 0 at 1."""
    return (1 + math.cos(math.pi * share)) / 2


def _one_cycle(share: float, peak: float, start: float, final: float) -> float:
    if share < peak:
        return start + (1 - start) * (1 - _fall(share / peak))
    return final + (1 - final) * _fall((share - peak) / (1 - peak))
