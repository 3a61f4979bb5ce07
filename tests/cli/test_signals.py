"""SIGINT and SIGTERM in real processes: the step is finished, the state saved, the same command goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

PATIENCE = 60.0  # seconds until a test that waits gives up
STEPS = 1000
SETTINGS = (
    *("--json", "--steps", STEPS, "--set", "batch_size=20"),
    *("--set", "evaluation.every=never", "--set", "checkpoint.every=500 steps"),
)

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows sends no such signals")


@dataclass(frozen=True)
class Interrupted:
    """How a training process ended that was sent a signal."""

    run: Path
    code: int
    out: str
    err: str

    def steps(self):
        return [json.loads(line)["step"] for line in (self.run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def interrupted(program, tiny, tmp_path_factory):
    """Two processes, begun together; each is sent its signal when it has trained ten steps."""
    folder = tmp_path_factory.mktemp("interrupted")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    processes = {
        number: subprocess.Popen(
            [program, "train", *map(str, (tiny, *SETTINGS, "--run", folder / number.name))],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    ended = {}
    try:
        for number, process in processes.items():
            read = ""
            while "step 10/" not in read and (line := process.stderr.readline()):
                read += line
            process.send_signal(number)
            out, err = process.communicate(timeout=PATIENCE)
            ended[number.name] = Interrupted(folder / number.name, process.returncode, out, read + err)
    finally:
        for process in processes.values():
            process.kill()
            process.communicate()
    return ended


@pytest.fixture(params=["SIGINT", "SIGTERM"])
def ended(interrupted, request):
    return interrupted[request.param]


def test_signal_ends_training_with_code_3_and_says_how_to_go_on(ended):
    assert ended.code == 3, ended
    assert f"stopped by {ended.run.name} after step" in ended.err
    assert "run the same command to continue" in ended.err.splitlines()[-1]
    assert "Traceback" not in ended.err


def test_signal_leaves_a_json_document_that_says_unfinished(ended):
    document = json.loads(ended.out)
    assert document["finished"] is False
    assert 10 <= document["step"] < STEPS
    assert "accuracy" not in document


def test_signal_leaves_a_checkpoint_of_the_last_step(ended):
    step = json.loads(ended.out)["step"]
    saved = sorted(path.name for path in (ended.run / "checkpoints").iterdir())
    assert saved[-1] == f"step-{step:09d}"
    assert not [name for name in saved if name.startswith(".")]


def test_same_command_again_finishes_the_run(interrupted, foveal, tiny):
    ended = interrupted["SIGTERM"]
    stopped_at = json.loads(ended.out)["step"]
    outcome = foveal("train", tiny, *SETTINGS, "--run", ended.run).succeeded()
    assert f"continuing from step {stopped_at}" in outcome.err
    assert (outcome.document["step"], outcome.document["finished"]) == (STEPS, True)
    assert ended.steps() == [1, *range(10, STEPS + 1, 10)]


SLOW = """
import pathlib
import time


def make():
    pathlib.Path("reading").touch()
    time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_before_training_ends_with_code_3_and_no_run(start, tmp_path, number):
    (tmp_path / "slow.py").write_text(SLOW)
    process = start("train", "digits", "--run", "run", "--set", "data.name=slow:make")
    deadline = time.monotonic() + PATIENCE
    while not (tmp_path / "reading").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (3, "")
    assert err == "interrupted: run the same command to continue\n"
    assert not (tmp_path / "run").exists()


STALLING = """
import dataclasses
import pathlib
import time

import foveal
from foveal.data.catalog import open_data


class Slow:
    def __init__(self, source, *, part, allowed):
        self.source, self.part, self.allowed = source, part, allowed

    def __getattr__(self, name):
        return getattr(self.source, name)

    def __len__(self):
        return len(self.source)

    def read(self, indices):
        self.allowed -= 1
        if self.allowed < 0 and not pathlib.Path("fast").exists():
            pathlib.Path(f"stalled {self.part}").touch()
            time.sleep(5 if self.part == "validation" else 600)
        return self.source.read(indices)


def make(part, allowed):
    data = open_data(foveal.load_recipe("digits").data)
    slow = Slow(getattr(data, part), part=part, allowed=allowed)
    return dataclasses.replace(data, **{part: slow})
"""


@pytest.mark.parametrize("part", ["train", "validation"])
def test_signal_while_data_are_read_or_evaluated_ends_at_once_and_loses_nothing(
    start, foveal, tiny, tmp_path, part
):
    (tmp_path / "stalling.py").write_text(STALLING)
    allowed = {"train": 20, "validation": 6}[part]
    command = (
        *("train", tiny, "--steps", 30, "--set", "evaluation.every=10 steps"),
        *("--set", "evaluation.batch_size=50"),
        *("--set", f"data={{name='stalling:make', options={{part='{part}', allowed={allowed}}}}}"),
    )
    process = start(*command, "--run", "stopped")
    deadline = time.monotonic() + PATIENCE
    while not (tmp_path / f"stalled {part}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)  # the batches read before are trained on meanwhile
    begun = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 3, err
    assert time.monotonic() - begun < 30
    (tmp_path / "fast").touch()
    resumed = foveal(*command, "--run", "stopped").succeeded()
    assert "continuing from step" in resumed.err
    foveal(*command, "--run", "whole").succeeded()
    for log in ("metrics.jsonl", "evaluations.jsonl"):
        assert without_times(tmp_path / "stopped" / log) == without_times(tmp_path / "whole" / log)
    weights = "checkpoints/step-000000030/ema.safetensors"
    assert (tmp_path / "stopped" / weights).read_bytes() == (tmp_path / "whole" / weights).read_bytes()


def without_times(path):
    lines = map(json.loads, path.read_text().splitlines())
    return [{key: value for key, value in line.items() if key != "time"} for line in lines]
