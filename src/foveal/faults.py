"""Points at which a process can be made to die, so that recovery is tested on the real program.

``FOVEAL_FAULT=POINT@STEP`` in the environment: SIGKILL at the first ``POINT`` that is reached once training
step number STEP (from 0) has begun. ``FOVEAL_FAULT=random@STEP+SECONDS`` : so long after that step began,
wherever the process may be then. Without the variable, a point costs a comparison.
"""

from __future__ import annotations

import os
import signal
import threading
from typing import Final, Literal, get_args

Point = Literal[
    "step",
    "loader",
    "evaluation",
    "checkpoint write",
    "before rename",
    "after rename",
    "deletion",
]
POINTS: Final[tuple[Point, ...]] = get_args(Point)
RANDOM: Final = "random"
VARIABLE: Final = "FOVEAL_FAULT"


class _Fault:
    """What the environment asks for."""

    def __init__(self, text: str) -> None:
        self.point, _, when = text.partition("@")
        step, _, delay = when.partition("+")
        self.step, self.delay = int(step), float(delay or 0)
        self.begun = -1  # the training step that was begun last


_fault = _Fault(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None


def begin_step(step: int) -> None:
    """Training step number ``step`` (from 0) begins."""
    if _fault is None:
        return
    if _fault.point == RANDOM and _fault.begun < _fault.step <= step:
        timer = threading.Timer(_fault.delay, _die, (_fault,))
        timer.daemon = True
        timer.start()
    _fault.begun = step


def fault_point(point: Point) -> None:
    """Die here if that was asked for."""
    if _fault is not None and _fault.point == point and _fault.begun >= _fault.step:
        _die(_fault)


def _die(fault: _Fault) -> None:
    os.write(2, f"killed: {fault.point} at step {fault.begun}\n".encode())
    os.kill(os.getpid(), signal.SIGKILL)
    threading.Event().wait()  # the signal may take a moment to arrive
