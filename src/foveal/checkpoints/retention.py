"""Which checkpoints to keep: policies as pure functions of a list of them.

What any policy keeps is kept. Each looks only at what the checkpoints themselves say, and what it keeps of a
list it also keeps of every part of that list. So it does not matter how often, when, in what order of saving
or by how many restarts of a run the list was pruned: what is left is what the policies keep of all of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from foveal.recipe.schema import Checkpointing


@dataclass(frozen=True, slots=True)
class Saved:
    """A checkpoint as a policy sees it.

    Attributes:
        step: the step it was saved at.
        metrics: what the validation part gave at that step, by name; empty if it was not evaluated.
        seconds: time spent training until then, if known.
        score: the higher, the better by the recipe's ``evaluation.best``; None if it was not evaluated.
    """

    step: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    seconds: float | None = None
    score: float | None = None


class Policy(Protocol):
    """What is worth keeping."""

    @property
    def reason(self) -> str:
        """Why a checkpoint is kept, as a person would say it."""

    def keeps(self, saved: Sequence[Saved]) -> set[int]:
        """The steps of those to keep; each step occurs once in ``saved``, in any order."""


@dataclass(frozen=True, slots=True)
class Newest:
    """The ``count`` of the highest steps."""

    count: int

    @property
    def reason(self) -> str:
        """Why."""
        return "the last" if self.count == 1 else f"one of the last {self.count}"

    def keeps(self, saved: Sequence[Saved]) -> set[int]:
        """The steps of those to keep."""
        return set(sorted((one.step for one in saved), reverse=True)[: self.count])


@dataclass(frozen=True, slots=True)
class EverySteps:
    """The first of every ``steps`` steps, but not of the steps before the first multiple."""

    steps: int

    @property
    def reason(self) -> str:
        """Why."""
        return f"the first of {self.steps} steps"

    def keeps(self, saved: Sequence[Saved]) -> set[int]:
        """The steps of those to keep."""
        return _first_of_each((one.step // self.steps, one.step) for one in saved)


@dataclass(frozen=True, slots=True)
class EveryHours:
    """The first of every ``hours`` of training, but not of the time before they first have passed."""

    hours: float

    @property
    def reason(self) -> str:
        """Why."""
        return f"the first of {self.hours:g} hour{'' if self.hours == 1 else 's'}"

    def keeps(self, saved: Sequence[Saved]) -> set[int]:
        """The steps of those to keep."""
        timed = ((one.seconds, one.step) for one in saved if one.seconds is not None)
        return _first_of_each((seconds // (3600 * self.hours), step) for seconds, step in timed)


@dataclass(frozen=True, slots=True)
class Best:
    """The ``count`` best by a metric of the validation part; of equals the earlier."""

    metric: str
    count: int
    higher_is_better: bool

    @property
    def reason(self) -> str:
        """Why."""
        rank = "the best" if self.count == 1 else f"one of the best {self.count}"
        return f"{rank} by {self.metric}"

    def keeps(self, saved: Sequence[Saved]) -> set[int]:
        """The steps of those to keep."""
        sign = -1 if self.higher_is_better else 1
        values = ((one.metrics.get(self.metric, math.nan), one.step) for one in saved)
        rated = sorted((sign * value, step) for value, step in values if math.isfinite(value))
        return {step for _, step in rated[: self.count]}


def retention_policies(
    checkpointing: Checkpointing, best_metric: str, higher_is_better: Callable[[str], bool]
) -> list[Policy]:
    """The policies that a recipe asks for.

    Args:
        checkpointing: the recipe's ``checkpoint`` table.
        best_metric: its ``evaluation.best``, which a plain number in ``keep_best`` is about.
        higher_is_better: whether a metric of a name is one to maximise.
    """
    best = checkpointing.keep_best
    counts = best if isinstance(best, dict) else {best_metric: best}
    policies: list[Policy] = [Newest(checkpointing.keep_last)]
    policies += [Best(name, count, higher_is_better(name)) for name, count in counts.items() if count]
    if checkpointing.keep_steps is not None:
        policies.append(EverySteps(checkpointing.keep_steps))
    if checkpointing.keep_hours is not None:
        policies.append(EveryHours(checkpointing.keep_hours))
    return policies


def retained(saved: Sequence[Saved], policies: Iterable[Policy]) -> dict[int, list[str]]:
    """The steps that at least one policy keeps, each with the reasons."""
    reasons: dict[int, list[str]] = {}
    for policy in policies:
        for step in sorted(policy.keeps(saved)):
            reasons.setdefault(step, []).append(policy.reason)
    return reasons


def _first_of_each(placed: Iterable[tuple[float, int]]) -> set[int]:
    """The lowest step of each interval, given (number of the interval, step); interval 0 has none."""
    first: dict[float, int] = {}
    for interval, step in placed:
        if interval >= 1:
            first[interval] = min(step, first.get(interval, step))
    return set(first.values())
