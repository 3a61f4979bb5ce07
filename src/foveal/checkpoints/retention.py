"""Which checkpoints to keep: pure functions of a list of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True)
class Saved:
    """A checkpoint as a policy sees it.

    Attributes:
        step: the step it was saved at.
        accuracy: what the validation part gave at that step, if it was evaluated.
    """

    step: int
    accuracy: float | None = None


def newest(saved: Iterable[Saved], count: int) -> set[int]:
    """The steps of the ``count`` latest."""
    return set(sorted((one.step for one in saved), reverse=True)[:count])


def best(saved: Iterable[Saved], count: int) -> list[int]:
    """The steps of the ``count`` of highest accuracy, best first; of equals the earlier."""
    rated = [(-one.accuracy, one.step) for one in saved if one.accuracy is not None]
    return [step for _, step in sorted(rated)[:count]]
