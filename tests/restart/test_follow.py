"""A trainer and a follower, two real processes, both killed with SIGKILL and started again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.events import read_events

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FOVEAL = str(Path(sys.executable).with_name("foveal"))
EARLY, STEPS = 4, 100
PATIENCE = 200.0
SETTINGS = ("batch_size=20", "evaluation.every=never", "checkpoint.every=1 steps", "logging.every=1 step")


class Process:
    """A command that can be killed and started again."""

    def __init__(self, *arguments: object) -> None:
        self._command = [FOVEAL, *map(str, arguments)]
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(
            self._command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )

    def kill_when(self, reached: Callable[[], bool]) -> None:
        """Wait until ``reached``, and kill without warning."""
        assert self._process is not None
        deadline = time.monotonic() + PATIENCE
        while not reached():
            assert self._process.poll() is None, self._process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.002)
        self.kill()

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def output(self) -> str:
        assert self._process is not None
        out, err = self._process.communicate(timeout=PATIENCE)
        assert self._process.returncode == 0, err
        return out


def trainer(tiny: Path, run: Path, keep: int) -> Process:
    settings = [f"--set={setting}" for setting in (*SETTINGS, f"checkpoint.keep_last={keep}")]
    return Process("train", tiny, "--run", run, "--steps", STEPS, "--json", *settings)


def steps_in(path: Path) -> list[int]:
    """The steps of all complete lines."""
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [json.loads(line)["step"] for line in lines]


def last_in(path: Path) -> int:
    return max(steps_in(path), default=0)


@pytest.fixture
def pair(tiny: Path, tmp_path: Path) -> Iterator[tuple[Process, Process]]:
    """A trainer that saves every step and keeps one, after one that has kept a few; a follower."""
    run = tmp_path / "run"
    first, second = (trainer(tiny, run, keep) for keep in (STEPS, 1))
    processes = second, Process("evaluate", run, "--follow", "--json")
    first.start()
    first.kill_when(lambda: last_in(run / "metrics.jsonl") >= EARLY)
    yield processes
    for process in processes:
        process.kill()


def test_every_saved_step_is_evaluated_once_though_both_are_killed_several_times(
    pair: tuple[Process, Process], tmp_path: Path
) -> None:
    run, (training, following) = tmp_path / "run", pair
    trained, followed = run / "metrics.jsonl", run / "evaluations-follow.jsonl"
    following.start()
    following.kill_when(lambda: len(steps_in(followed)) >= 2)
    training.start()
    following.start()
    training.kill_when(lambda: last_in(trained) >= 25)
    following.kill_when(lambda: len(steps_in(followed)) >= 12)
    training.start()
    following.start()
    following.kill_when(lambda: len(steps_in(followed)) >= 30)
    training.kill_when(lambda: last_in(trained) >= 60)
    following.start()
    training.start()
    following.kill_when(lambda: len(steps_in(followed)) >= 60)
    training.output()  # it ends while nobody follows
    following.start()
    document = json.loads(following.output())

    assert sorted(steps_in(followed)) == list(range(1, STEPS + 1))
    assert followed.read_bytes().endswith(b"\n")
    assert document["finished"]
    assert [record["step"] for record in document["evaluations"]] == list(range(1, STEPS + 1))
    assert sorted(event.step for event in read_events(run / "eval")) == list(range(1, STEPS + 1))
    kept = [path.name for path in (run / "checkpoints").iterdir()]
    assert kept == [f"step-{STEPS:09d}"]
