"""When something happens every so often, and the guards that stop a run."""

from __future__ import annotations

import math
import signal
import threading
import time
from typing import TYPE_CHECKING

import torch

from foveal.errors import NonFiniteLossError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType
    from typing import Self

    from torch import Tensor

    from foveal.data.sampler import Sampler
    from foveal.recipe import Frequency

_KEPT = 100  # losses held back at most before they are looked at


class Every:
    """Says at which steps something is due.

    Steps and epochs are functions of the step, so a resumed run acts at the same steps; minutes count from
    the last time, by an injectable clock.
    """

    def __init__(
        self, frequency: Frequency, sampler: Sampler, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._frequency = frequency
        self._sampler = sampler
        self._clock = clock
        self._last = clock()

    def due(self, step: int) -> bool:
        """Whether it is due after step number ``step`` (from 1)."""
        amount = self._frequency.amount
        match self._frequency.unit:
            case "never":
                return False
            case "steps":
                return step % int(amount) == 0
            case "epochs":
                return self._periods(step, amount) > self._periods(step - 1, amount)
            case "min":
                if self._clock() - self._last < 60 * amount:
                    return False
                self._last = self._clock()
                return True

    def _periods(self, step: int, amount: float) -> int:
        return math.floor(self._sampler.epoch(step) / amount + 1e-9)  # 3 / 0.1 is 29.999...


class FiniteLoss:
    """Stops a run whose loss is no number, without waiting for the device at every step."""

    def __init__(self, describe: Callable[[int], list[str]]) -> None:
        """``describe(step)`` gives the keys of the examples of a step."""
        self._describe = describe
        self._losses: list[tuple[int, Tensor]] = []

    def add(self, step: int, loss: Tensor) -> None:
        """Note the loss of step number ``step``; looks at it now and then."""
        self._losses.append((step, loss))
        if len(self._losses) >= _KEPT:
            self.check()

    def check(self) -> None:
        """Look at every loss noted since the last look.

        Raises:
            NonFiniteLossError: for the first that is infinite or NaN, naming the examples of its batch.
        """
        if not self._losses:
            return
        steps, losses = zip(*self._losses, strict=True)
        self._losses = []
        wrong = (~torch.stack(losses).isfinite()).nonzero()
        if len(wrong):
            first = int(wrong[0])
            keys = self._describe(steps[first])
            raise NonFiniteLossError(steps[first], losses[first].item(), keys)


class StopRequest:
    """Turns SIGINT and SIGTERM into a request to stop after the present step.

    The second signal acts as if foveal did nothing about it. In a thread other than the main one, where
    Python allows no handlers, signals keep their meaning.

    Attributes:
        requested: the signal's name once one has come.
    """

    def __init__(self) -> None:
        self.requested: str | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        self._restore()

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self.requested = signal.Signals(number).name
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._previous = {}
