from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from tests.events import read_events

from foveal.training.follower_log import FollowerLog

if TYPE_CHECKING:
    from pathlib import Path

LINES = "evaluations-follow.jsonl"


def record(step: int) -> dict[str, Any]:
    accuracy = step / 128
    return {"step": step, "split": "test", "weights": "ema", "accuracy": accuracy, "loss": 0.5, "examples": 8}


def write(folder: Path, *steps: int) -> None:
    log = FollowerLog(folder, clock=lambda: 1000.0)
    for step in steps:
        log.add(record(step))
    log.close()


def steps(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / LINES).read_text().splitlines()]


def event_file(folder: Path) -> Path:
    (path,) = (folder / "eval").iterdir()
    return path


def contents(folder: Path) -> tuple[bytes, bytes]:
    return (folder / LINES).read_bytes(), event_file(folder).read_bytes()


def test_an_evaluation_stands_in_the_lines_and_in_the_events_with_precision_at_1(tmp_path: Path) -> None:
    write(tmp_path, 32, 64)
    assert steps(tmp_path) == [32, 64]
    scalars = {event.step: dict(event.scalars) for event in read_events(tmp_path / "eval")}
    assert scalars == {
        step: {"test/accuracy": step / 128, "test/loss": 0.5, "test/precision@1": step / 128}
        for step in (32, 64)
    }


def test_a_line_says_how_long_the_event_file_is(tmp_path: Path) -> None:
    write(tmp_path, 32, 64)
    lines = [json.loads(line) for line in (tmp_path / LINES).read_text().splitlines()]
    assert [line["time"] for line in lines] == [{"wall": 1000.0}] * 2
    assert lines[1]["events_bytes"] == len(event_file(tmp_path).read_bytes())


def test_wherever_writing_was_cut_off_the_logs_end_as_if_it_had_not_been(tmp_path: Path) -> None:
    whole, one = tmp_path / "whole", tmp_path / "one"
    whole.mkdir()
    one.mkdir()
    write(whole, 32, 64)
    write(one, 32)
    lines, events = contents(whole)
    first_lines, first_events = contents(one)
    states = [(first_lines, events[:size]) for size in range(len(first_events), len(events) + 1)]
    states += [(lines[:size], events) for size in range(len(first_lines), len(lines))]
    for number, state in enumerate(states):
        folder = tmp_path / str(number)
        shutil.copytree(one, folder)
        (folder / LINES).write_bytes(state[0])
        event_file(folder).write_bytes(state[1])
        log = FollowerLog(folder, clock=lambda: 1000.0)
        assert [each["step"] for each in log.records] == [32]
        log.add(record(64))
        log.close()
        assert contents(folder) == (lines, events), number


def test_what_is_complete_is_left_as_it_is(tmp_path: Path) -> None:
    write(tmp_path, 32, 64)
    before = contents(tmp_path)
    write(tmp_path)
    assert contents(tmp_path) == before


def test_events_that_were_deleted_are_reported_and_begin_anew(tmp_path: Path) -> None:
    write(tmp_path, 32)
    shutil.rmtree(tmp_path / "eval")
    said: list[str] = []
    log = FollowerLog(tmp_path, report=said.append)
    log.add(record(64))
    log.close()
    assert len(said) == 1
    assert "are gone" in said[0]
    assert [event.step for event in read_events(tmp_path / "eval")] == [64]
    assert steps(tmp_path) == [32, 64]


def test_lines_that_were_deleted_take_the_events_with_them(tmp_path: Path) -> None:
    write(tmp_path, 32)
    (tmp_path / LINES).unlink()
    write(tmp_path, 64)
    assert [event.step for event in read_events(tmp_path / "eval")] == [64]


@pytest.mark.parametrize(
    "line",
    [
        "nonsense",
        "[]",
        "{}",
        '{"step": 1}',
        '{"step": 1, "split": "test", "weights": "ema", "accuracy": 0.5, "events_bytes": -1}',
    ],
)
def test_a_line_that_is_no_evaluation_counts_for_nothing(tmp_path: Path, line: str) -> None:
    write(tmp_path, 32)
    with (tmp_path / LINES).open("a") as file:
        file.write(f"{line}\n")
    log = FollowerLog(tmp_path)
    assert [each["step"] for each in log.records] == [32]
    log.close()
