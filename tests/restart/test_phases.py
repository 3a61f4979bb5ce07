"""A run in phases, in real processes killed in the middle of steps before and after the switch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.events import read_events

FOVEAL = str(Path(sys.executable).with_name("foveal"))
STEPS, SWITCH, SAVE = 30, 12, 5
SETTINGS = [
    "threads=1",
    "batch_size=50",
    "precision=float32",
    "model.options={widths=[16, 32], kernel=3, stride=1, padding=true, dropout=0.2}",
    "optimizer={name='adamw', learning_rate=0.01}",
    "schedule.name=constant",
    f"phases=[{{steps={SWITCH}, freeze=['^features'], rate=2.0}}]",
    "ema={decay=0.9}",
    "evaluation.every=7 steps",  # a checkpoint of its own, and batch norm's modes put back
    "logging.every=1 step",
    f"checkpoint.every={SAVE} steps",
    "checkpoint.keep_last=20",
]


def train(run: Path, kill_at: int | None = None) -> subprocess.CompletedProcess[str]:
    """Train or go on, to the end or to a SIGKILL between a step's backward pass and its update."""
    settings = [f"--set={setting}" for setting in SETTINGS]
    command = [FOVEAL, "train", "digits", "--run", str(run), "--steps", str(STEPS), *settings]
    fault = {} if kill_at is None else {"FOVEAL_FAULT": f"step@{kill_at}"}
    done = subprocess.run(command, env=os.environ | fault, capture_output=True, text=True, check=False)
    assert done.returncode == (0 if kill_at is None else -signal.SIGKILL), done.stderr
    return done


def resumed_from(printed: str) -> list[int]:
    return [int(line.split()[3]) for line in printed.splitlines() if "continuing from" in line]


def records(path: Path) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "time"} for line in lines]


def test_a_run_killed_before_and_after_the_switch_ends_with_the_bits_and_logs_of_one_never_stopped(
    tmp_path: Path,
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train(whole)
    train(killed, kill_at=SWITCH - 3)
    train(killed, kill_at=SWITCH + 9)
    printed = train(killed).stderr
    (step,) = resumed_from(printed)
    assert SWITCH < step <= SWITCH + 9

    last = f"checkpoints/step-{STEPS:09d}"
    for name in ("model.safetensors", "ema.safetensors", "optimizer.safetensors"):
        assert (whole / last / name).read_bytes() == (killed / last / name).read_bytes(), name
    logged = records(killed / "metrics.jsonl")
    assert [record["step"] for record in logged] == list(range(1, STEPS + 1))
    rates = [record["learning_rate"] for record in logged]
    assert rates == [0.02] * SWITCH + [0.01] * (STEPS - SWITCH)
    assert logged == records(whole / "metrics.jsonl")
    assert records(killed / "evaluations.jsonl") == records(whole / "evaluations.jsonl")
    assert read_events(killed) == read_events(whole)
