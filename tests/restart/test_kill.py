"""Real processes, killed with SIGKILL and started again by the same command."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.events import read_events

from foveal.reproducibility.comparison import compare_logs

FOVEAL = str(Path(sys.executable).with_name("foveal"))
STEPS = 120
SETTINGS = [
    "threads=1",
    "batch_size=50",
    "model.options={widths=[16, 32], kernel=3, stride=1, padding=true, dropout=0.2}",
    "schedule.name=constant",
    "ema={decay=0.95}",
    "evaluation.every=40 steps",
    "logging.every=1 step",
    "checkpoint.every=15 steps",
    "logging.loss_averages=0.9",
    "logging.histograms=['activations', 'weights', 'gradients']",
    "logging.histograms_every=10 steps",
    "logging.images=2",
    "logging.images_every=7 steps",
    "logging.graph=true",
]


def command(run: Path, precision: str) -> list[str]:
    settings = [f"--set={setting}" for setting in (*SETTINGS, f"precision={precision}")]
    return [FOVEAL, "train", "digits", "--run", str(run), "--steps", str(STEPS), "--json", *settings]


def logged_steps(run: Path) -> list[int]:
    path = run / "metrics.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [json.loads(line)["step"] for line in lines]


def train_until(run: Path, step: int, precision: str) -> str:
    """Train, kill without warning once ``step`` is logged; what was printed."""
    process = subprocess.Popen(
        command(run, precision), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 200
    while max(logged_steps(run), default=0) < step:
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    _, printed = process.communicate()
    return printed


def without_times(path: Path) -> list[dict[str, object]]:
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in record.items() if key != "time"} for record in records]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_run_killed_at_three_steps_ends_with_the_bits_and_the_logs_of_one_never_stopped(
    tmp_path: Path, precision: str
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(command(whole, precision), check=True, capture_output=True)
    resumed_from = []
    for step in (25, 55, 95, None):
        if step is None:
            done = subprocess.run(command(killed, precision), check=True, capture_output=True, text=True)
            printed = done.stderr
            assert json.loads(done.stdout)["step"] == STEPS
        else:
            printed = train_until(killed, step, precision)
        resumed_from += [int(line.split()[3]) for line in printed.splitlines() if "continuing from" in line]
    assert len(set(resumed_from)) == 3
    assert min(resumed_from) > 0

    last = f"checkpoints/step-{STEPS:09d}"
    for name in ("model.safetensors", "ema.safetensors", "optimizer.safetensors"):
        assert (whole / last / name).read_bytes() == (killed / last / name).read_bytes(), name
    assert logged_steps(killed) == list(range(1, STEPS + 1))
    for log in ("metrics.jsonl", "evaluations.jsonl"):
        assert without_times(killed / log) == without_times(whole / log)
    assert read_events(killed) == read_events(whole)
    assert compare_logs(killed, whole) == []  # histograms and images too, and each once


def test_a_run_killed_before_its_first_save_begins_again_with_clean_logs(tmp_path: Path) -> None:
    printed = train_until(tmp_path / "run", 5, "float32")
    assert "continuing" not in printed
    subprocess.run(command(tmp_path / "run", "float32"), check=True, capture_output=True)
    assert logged_steps(tmp_path / "run") == list(range(1, STEPS + 1))
