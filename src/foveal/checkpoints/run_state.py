"""What ``state.json`` says of a run: the checks without which nobody may use it.

A checkpoint whose checksums are right can still come from anywhere. So the fields that a run relies on are
looked at before they decide which file is cut to what length, or how large a network is built.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from foveal.checkpoints.retention import Saved
from foveal.errors import DamagedCheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from pathlib import Path

RUN_FIELDS: Final = ("step", "train_seconds", "logs", "classes", "image_shape", "data")
"""The fields that every checkpoint of a run has."""

_COUNTS = (
    "step",
    "examples",
    "left_out",
    "temperature",
)  # numbers in the record of an evaluation that measure nothing


def check_state(
    folder: Path, state: Mapping[str, Any], step: int, required: Collection[str] = ("step",)
) -> None:
    """Check the fields of a state, as far as they are there.

    Args:
        folder: the checkpoint's, for the message.
        state: what its ``state.json`` holds.
        step: the step that the folder is named after.
        required: the fields that must be there.

    Raises:
        DamagedCheckpointError: one is missing, is something else than a run writes, or names another step.
    """
    path = folder / "state.json"
    for name, (what, valid) in _FIELDS.items():
        if name in state:
            if not valid(state[name]):
                raise DamagedCheckpointError(
                    f"{path}: {name} is {state[name]!r:.80}, not {what}: use another checkpoint"
                )
        elif name in required:
            raise DamagedCheckpointError(f"{path}: it has no {name}: use another checkpoint")
    if state["step"] != step:
        raise DamagedCheckpointError(
            f"{path}: step is {state['step']}, but the folder is that of step {step}: use another checkpoint"
        )


def saved_from(step: int, state: Mapping[str, Any]) -> Saved:
    """What policies ask about a checkpoint, from its checked state.

    A state without ``score`` is of a time when the accuracy decided which was the best.
    """
    validation: Mapping[str, Any] = state.get("validation") or {}
    metrics = {
        name: float(value) for name, value in validation.items() if name not in _COUNTS and _is_number(value)
    }
    score = state["score"] if "score" in state else metrics.get("accuracy")
    return Saved(step, metrics, state.get("train_seconds"), score)


def _is_count(value: object) -> bool:
    """Whether it is an integer from 0, of 63 bits. True is none, though an instance of int."""
    return type(value) is int and 0 <= value < 1 << 63


def _is_number(value: object) -> bool:
    return (type(value) is int and abs(value) < 1 << 63) or (type(value) is float and math.isfinite(value))


def _is_shape(value: object) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(_is_count(size) and size > 0 for size in value)


def _is_table(value: object, valid: Callable[[object], bool] = lambda _value: True) -> bool:
    return isinstance(value, dict) and all(map(valid, value.values()))


def _is_best(value: object) -> bool:
    """Whether it names a step; its score may be missing, as when the accuracy decided."""
    return isinstance(value, dict) and _is_count(value.get("step")) and _is_number(value.get("score", 0))


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


_FIELDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "step": ("an integer from 0", _is_count),
    "first_step": ("an integer from 0", _is_count),
    "train_seconds": ("a number from 0", lambda value: _is_number(value) and value >= 0),
    "validation": ("null or an object", lambda value: value is None or _is_table(value)),
    "score": ("null or a number", lambda value: value is None or _is_number(value)),
    "best": ("null, or an object with a step and a score", lambda value: value is None or _is_best(value)),
    "temperature": ("a number above 0", lambda value: _is_number(value) and value > 0),
    "stale": ("an integer from 0", _is_count),
    "evaluation_pending": ("true or false", lambda value: isinstance(value, bool)),
    "loss_averages": ("numbers by part of the loss", lambda value: _is_table(value, _is_number)),
    "logs": ("lengths in bytes by file", lambda value: _is_table(value, _is_count)),
    "classes": ("a list of names", _are_texts),
    "image_shape": ("height, width and channels", _is_shape),
    "stored_shape": ("null, or height, width and channels", lambda value: value is None or _is_shape(value)),
    "data": ("a text", lambda value: isinstance(value, str)),
}
