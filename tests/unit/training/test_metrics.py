from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from tests.events import Event, read_events

from foveal.errors import RunError
from foveal.training.metrics import RunLog

if TYPE_CHECKING:
    from pathlib import Path


def record(step: int) -> dict[str, Any]:
    return {"step": step, "loss": step / 2, "time": {"wall": 1.0, "examples_per_second": 5.0}}


def steps(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_reopening_cuts_every_log_back_to_the_recorded_lengths(tmp_path: Path) -> None:
    log = RunLog(tmp_path, {})
    log.metrics(record(1))
    lengths = log.lengths()
    log.metrics(record(2))
    log.evaluation({"step": 2, "split": "test", "accuracy": 0.5})
    log.close()
    log = RunLog(tmp_path, lengths)
    log.metrics(record(3))
    log.close()
    assert steps(tmp_path) == [1, 3]
    assert (tmp_path / "evaluations.jsonl").read_text() == ""
    assert read_events(tmp_path) == [Event(1, (("loss", 0.5),)), Event(3, (("loss", 1.5),))]


def test_without_recorded_lengths_a_log_begins_anew(tmp_path: Path) -> None:
    for step in (1, 2):
        log = RunLog(tmp_path, {})
        log.metrics(record(step))
        log.close()
    assert steps(tmp_path) == [2]
    assert len(list(tmp_path.glob("events.*"))) == 1


def test_a_log_that_lost_its_end_goes_on_and_says_so(tmp_path: Path) -> None:
    log = RunLog(tmp_path, {})
    log.metrics(record(1))
    lengths = log.lengths()
    log.close()
    (tmp_path / "metrics.jsonl").unlink()
    said: list[str] = []
    log = RunLog(tmp_path, lengths, report=said.append)
    log.metrics(record(2))
    log.close()
    assert steps(tmp_path) == [2]
    assert "metrics.jsonl" in said[0]


def test_nested_numbers_become_scalars_under_their_path(tmp_path: Path) -> None:
    log = RunLog(tmp_path, {})
    log.metrics({"step": 7, "activations": {"conv1": {"mean": 0.25}}})
    log.evaluation({"step": 7, "split": "validation", "accuracy": 0.75, "examples": 10})
    log.close()
    assert read_events(tmp_path) == [
        Event(7, (("activations/conv1/mean", 0.25),)),
        Event(7, (("validation/accuracy", 0.75),)),
    ]


def test_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(RunError, match=r"metrics\.jsonl: cannot be written"):
        RunLog(tmp_path, {})
