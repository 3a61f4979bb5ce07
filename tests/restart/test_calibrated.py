"""A calibrated run that uses its best checkpoint, killed in its first evaluation and in steps."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from foveal.inference import open_run

FOVEAL = str(Path(sys.executable).with_name("foveal"))
SETTINGS = [
    "threads=1",
    "batch_size=50",
    "precision=float32",
    "model.options={widths=[8, 16], kernel=3, stride=1, padding=true}",
    "optimizer={name='adamw', learning_rate=0.01}",
    "schedule={name='constant'}",
    "head={}",
    "evaluation.first=true",
    "evaluation.use=best",
    "evaluation.best=loss",
    "evaluation.calibrate=true",
    "evaluation.every=6 steps",
    "logging.every=1 step",
    "checkpoint.every=4 steps",
    "steps=30",
]
FAULTS = {
    "at the first evaluation": "evaluation@-1",
    "in the third step": "step@3",
    "between two evaluations": "step@14",
}


def train(run, fault=None, *more):
    settings = [f"--set={setting}" for setting in [*SETTINGS, *more]]
    command = [FOVEAL, "train", "digits", "--run", str(run), *settings]
    return subprocess.run(
        command,
        env=os.environ | ({"FOVEAL_FAULT": fault} if fault else {}),
        capture_output=True,
        text=True,
        check=False,
    )


def records(path):
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "time"} for line in lines]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    run = tmp_path_factory.mktemp("calibrated") / "whole"
    assert train(run).returncode == 0
    return run


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_killed_run_ends_with_the_same_logs_weights_and_temperature(whole, tmp_path, fault):
    run = tmp_path / "run"
    assert train(run, fault).returncode == -signal.SIGKILL
    assert train(run).returncode == 0
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        assert records(run / name) == records(whole / name)
    last = "checkpoints/step-000000030"
    assert (run / last / "model.safetensors").read_bytes() == (
        whole / last / "model.safetensors"
    ).read_bytes()
    state, expected = (json.loads((each / last / "state.json").read_text()) for each in (run, whole))
    assert state["temperature"] == expected["temperature"]


def test_the_test_part_is_measured_once_with_the_best_weights(whole):
    evaluations = records(whole / "evaluations.jsonl")
    validations = [each for each in evaluations if each["split"] == "validation"]
    assert [each["step"] for each in validations] == [0, 6, 12, 18, 24, 30]
    best = min(validations, key=lambda each: each["loss"])
    (tested,) = (each for each in evaluations if each["split"] == "test")
    assert (tested["step"], tested["temperature"]) == (best["step"], best["temperature"])
    assert train(whole).returncode == 0  # there is nothing left to do
    assert records(whole / "evaluations.jsonl") == evaluations


def test_users_get_the_best_weights_and_the_temperature_unless_they_name_others(whole):
    best = min(
        (each for each in records(whole / "evaluations.jsonl") if each["split"] == "validation"),
        key=lambda each: each["loss"],
    )
    assert (open_run(whole).state["step"], open_run(whole).temperature) == (best["step"], best["temperature"])
    latest = open_run(whole, checkpoint="latest")
    assert latest.state["step"] == 30
    assert open_run(whole, checkpoint=30).temperature == latest.temperature != 1


def test_a_command_on_the_run_measures_what_training_did(whole):
    command = [FOVEAL, "evaluate", str(whole), "--json"]
    printed = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    (tested,) = (each for each in records(whole / "evaluations.jsonl") if each["split"] == "test")
    assert {key: printed[key] for key in tested} == tested
