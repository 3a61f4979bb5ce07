"""Every error foveal raises on purpose.

    FovealError                     exit code 1
    ├── UsageError                  exit code 2: what was asked for cannot be meant
    │   ├── RecipeError             a recipe that is malformed or contradicts itself
    │   └── UnknownNameError        no recipe, model, data set, ... of that name
    ├── DataError                   a data file is missing, malformed or inconsistent
    │   ├── DownloadError           it could not be fetched
    │   ├── ReadError               the device failed while it was read; another try may succeed
    │   └── CorruptRecordError      one record of it is damaged; the others can be used
    │       └── ImageError          one image could not be decoded
    ├── CheckpointError             a checkpoint cannot be written, read or used
    │   └── DamagedCheckpointError  its bytes are not those that were written
    ├── RunError                    a run folder cannot be used as asked
    └── NonFiniteLossError          training diverged

The message of each is one line that says what is wrong, where (file, record, key), and what to do.
The command line prints that line and exits with the code; a traceback appears only with ``--debug``.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Iterable


class FovealError(Exception):
    """Base of every error foveal raises on purpose."""

    exit_code: ClassVar[int] = 1


class UsageError(FovealError):
    """What was asked for cannot be meant: wrong arguments, wrong combination."""

    exit_code: ClassVar[int] = 2


class RecipeError(UsageError):
    """A recipe is malformed, or its fields contradict each other."""


class UnknownNameError(UsageError):
    """A name stands for nothing; the message suggests the nearest one that does."""

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str = "") -> None:
        super().__init__(f"no {kind} named {name!r}: {suggestion(name, known)}{f' {hint}' if hint else ''}")


def suggestion(name: str, known: Iterable[str]) -> str:
    """What may have been meant by ``name``: the nearest of the known names, or all of them."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"known: {', '.join(known)}" if known else "there are none"


class DataError(FovealError):
    """A data file is missing, malformed or inconsistent."""


class DownloadError(DataError):
    """A data file could not be fetched from any of its addresses."""


class ReadError(DataError):
    """The device failed while data were read: another try may succeed."""


class CorruptRecordError(DataError):
    """One record is damaged; the others can be used."""


class ImageError(CorruptRecordError):
    """One image could not be decoded, or is larger than the limit."""


class CheckpointError(FovealError):
    """A checkpoint cannot be written, read or used."""


class DamagedCheckpointError(CheckpointError):
    """The bytes of a checkpoint are not those that were written."""


class RunError(FovealError):
    """A run folder cannot be used as asked."""


class NonFiniteLossError(FovealError):
    """The loss, or the weights that a step gave, became infinite or NaN.

    Attributes:
        step: the step, counted from 1.
        loss: its loss.
        keys: the origins of the examples in its batch.
    """

    def __init__(self, step: int, loss: float, keys: list[str], what: str = "loss") -> None:
        self.step, self.loss, self.keys = step, loss, keys
        more = f" and {len(keys) - 8} more" if len(keys) > 8 else ""
        found = f"the loss is {loss}" if what == "loss" else f"the {what} are not finite (loss {loss:.6g})"
        super().__init__(
            f"{found} at step {step}, on {', '.join(keys[:8])}{more}; nothing was saved after it: "
            "try a lower optimizer.learning_rate, a warm-up (schedule.warmup), or precision = 'float32'"
        )
