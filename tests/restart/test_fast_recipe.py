"""The pieces of the fast recipes together, in real processes: killed, resumed and done again, to the bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from foveal.recipe import Recipe, to_toml
from foveal.reproducibility.replay import replay

FOVEAL = str(Path(sys.executable).with_name("foveal"))
STEPS = 24
# Sizes change after steps 8 and 16, the whitening's bias is frozen after 9, averages begin after 12.
VALUES = {
    "name": "pieces",
    "batch_size": 60,
    "steps": STEPS,
    "device": "cpu",
    "threads": 1,
    "loader_threads": 2,
    "precision": "bfloat16",
    "model": {"name": "whitened_cnn", "options": {"widths": [8, 16]}},
    "augmentation": [{"name": "alternating_flip"}, {"name": "translate", "pixels": 1, "fill": "reflect"}],
    "resolution": [{"size": [6, 6], "until": 1 / 3}, {"size": [7, 7], "until": 2 / 3}],
    "loss": {"label_smoothing": 0.2},
    "optimizer": {
        "name": "muon",
        "learning_rate": 0.24,
        "momentum": 0.6,
        "normalize": True,
        "rest_learning_rate": 1.0,
        "weight_decay": 1e-3,
        "decayed": "all",
    },
    "groups": [{"parameters": "^whiten", "until": 3 / 8}, {"parameters": "^head", "learning_rate": 2.0}],
    "schedule": {"name": "linear"},
    "ema": {"decay": 0.8, "start": 0.5, "statistics": "average"},
    "evaluation": {"every": "7 steps", "tta": "flip+shift"},
    "logging": {"every": "1 step"},
    "checkpoint": {"every": "5 steps", "keep_last": 20},
}


def train(folder: Path, name: str, kill_at: int | None = None) -> Path:
    """Train or go on, to the end or to a SIGKILL between a step's backward pass and its update."""
    recipe = folder / "recipe.toml"
    recipe.write_text(to_toml(Recipe.model_validate(VALUES)), encoding="utf-8")
    fault = {} if kill_at is None else {"FOVEAL_FAULT": f"step@{kill_at}"}
    done = subprocess.run(
        [FOVEAL, "train", str(recipe), "--run", str(folder / name)],
        env=os.environ | fault,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == (0 if kill_at is None else -signal.SIGKILL), done.stderr
    return folder / name


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("fast"), "whole")


def records(path: Path) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "time"} for line in lines]


def test_a_run_killed_in_each_of_its_parts_ends_with_the_bits_and_logs_of_one_never_stopped(
    whole: Path, tmp_path: Path
) -> None:
    for step in (3, 11, 21):  # before the first save; after a change of size, and after the last
        train(tmp_path, "killed", kill_at=step)
    killed = train(tmp_path, "killed")
    last = f"checkpoints/step-{STEPS:09d}"
    for name in ("model.safetensors", "ema.safetensors", "optimizer.safetensors"):
        assert (whole / last / name).read_bytes() == (killed / last / name).read_bytes(), name
    for log in ("metrics.jsonl", "evaluations.jsonl"):
        assert records(killed / log) == records(whole / log)
    assert [record["step"] for record in records(killed / "metrics.jsonl")] == list(range(1, STEPS + 1))


@pytest.mark.parametrize("step", [1, 9, STEPS])
def test_a_step_of_any_size_can_be_done_again(whole: Path, step: int) -> None:
    done = replay(whole, step)
    assert done.equal is True
    assert ("whiten.bias" in done.gradients) == (step <= 9)
