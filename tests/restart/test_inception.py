"""The recipe inception-v3 with a narrow network, on a folder of photographs and on TFRecords of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import foveal
from foveal.data.catalog import open_path
from foveal.data.formats.convert import convert
from foveal.recipe import override, to_toml

FOVEAL = str(Path(sys.executable).with_name("foveal"))
STEPS = 24
SETTINGS = (
    "model.options={depth_multiplier=0.1, min_depth=8, norm_decay=0.9}",
    "batch_size=12",
    f"steps={STEPS}",
    "device=cpu",
    "threads=1",
    "loader_threads=1",
    "precision=float32",
    "preprocessing=[{name='central_crop', fraction=0.875}, {name='resize', size=[75, 75]}]",
    "data.split={validation=0.2}",
    "evaluation.every=10 steps",
    "logging.every=1 step",
    "checkpoint.every=5 steps",
)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of stripes: upright, level and crossed, of random colours; images of two sizes."""
    folder, random = tmp_path_factory.mktemp("data") / "photographs", np.random.default_rng(0)
    rows, columns = np.arange(90)[:, None] // 6 % 2, np.arange(100)[None, :] // 6 % 2
    patterns = {"upright": columns + 0 * rows, "level": rows + 0 * columns, "crossed": rows ^ columns}
    for label, pattern in patterns.items():
        (folder / label).mkdir(parents=True)
        for number in range(12):
            light = pattern[: 80 + number % 2 * 10, :, None]
            pixels = light * random.integers(100, 226, 3) + random.integers(0, 30, (*light.shape[:2], 3))
            Image.fromarray(pixels.astype(np.uint8)).save(folder / label / f"{number}.png")
    return folder


def train(data: Path, run: Path, *, kill_at: int | None = None) -> Path:
    """Train or go on, to the end or to a SIGKILL between a step's backward pass and its update."""
    recipe = override(foveal.load_recipe("inception-v3"), SETTINGS)
    crop = recipe.augmentation[0].model_copy(update={"size": (75, 75)})
    recipe = recipe.model_copy(update={"augmentation": (crop, *recipe.augmentation[1:])})
    file = run.with_suffix(".toml")
    file.write_text(to_toml(recipe), encoding="utf-8")
    fault = {} if kill_at is None else {"FOVEAL_FAULT": f"step@{kill_at}"}
    done = subprocess.run(
        [FOVEAL, "train", str(file), "--data", str(data), "--run", str(run)],
        env=os.environ | fault,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == (0 if kill_at is None else -signal.SIGKILL), done.stderr
    return run


def records(path: Path) -> list[dict[str, float]]:
    timed = {"time", "examples_per_second", "seconds"}
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in timed} for line in lines]


@pytest.fixture(scope="module")
def whole(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(photographs, tmp_path_factory.mktemp("inception") / "whole")


def test_its_loss_falls(whole: Path) -> None:
    losses = [record["loss"] for record in records(whole / "metrics.jsonl")]
    assert len(losses) == STEPS
    assert np.mean(losses[-6:]) < np.mean(losses[:6]) - 0.1


def test_killed_and_resumed_it_ends_with_the_same_bits(
    whole: Path, photographs: Path, tmp_path: Path
) -> None:
    for step in (3, 17):
        train(photographs, tmp_path / "killed", kill_at=step)
    killed = train(photographs, tmp_path / "killed")
    last = f"checkpoints/step-{STEPS:09d}"
    for name in ("model.safetensors", "ema.safetensors", "optimizer.safetensors"):
        assert (whole / last / name).read_bytes() == (killed / last / name).read_bytes(), name
    for log in ("metrics.jsonl", "evaluations.jsonl"):
        assert records(killed / log) == records(whole / log)


def test_tfrecords_of_the_folder_give_the_same_run(whole: Path, photographs: Path, tmp_path: Path) -> None:
    (tmp_path / "records").mkdir()
    convert(open_path(photographs), tmp_path / "records" / "photographs.tfrecord", shards=2)
    run = train(tmp_path / "records", tmp_path / "run")
    assert records(run / "metrics.jsonl") == records(whole / "metrics.jsonl")
