"""What foveal train ./FOLDER gives, and the same network from scratch in the same time.

    python benchmarks/folder.py --data FOLDER_OF_CIFAR10 [--classes cat dog horse] [--seeds 3]

For each seed, 50 images of each class of CIFAR-10's training part are drawn and saved as PNG, and 500 of its
test part. ``foveal train ./FOLDER`` is timed as a user sees it: the whole command. "scratch" is the recipe
without the pretrained weights and the fitted head, with batch norm that learns (and forgets soon), at ten
times the rate, for as many steps as fill that time. "small" is a small network on the 32 x 32 pixels as they
are, for 100 epochs.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import machine
import numpy as np
from PIL import Image

import foveal
from foveal.data.catalog import open_path
from foveal.folder_recipe import folder_recipe
from foveal.recipe import Evaluation, Frequency

FOVEAL = str(Path(sys.executable).with_name("foveal"))
TRAIN, TEST = 50, 500


def main() -> None:
    """Train, and print a row a seed and the means."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--classes", nargs="+", default=["cat", "dog", "horse"])
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    print(f"{machine.describe()}; {', '.join(options.classes)}")
    rows = []
    for seed in range(options.seeds):
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            save_images(options.data, root / "photos", options.classes, seed)
            rows.append(measure(root, seed))
        shown = (f"{name} {value:.1f}" for name, value in rows[-1].items())
        print(f"seed {seed}  {'  '.join(shown)}", flush=True)
    for name in ("folder", "scratch", "small"):
        accuracies = [row[name] for row in rows]
        spread = statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0
        print(f"{name:<8} mean {statistics.mean(accuracies):.1f}% (deviation {spread:.1f})")
    gain = statistics.mean(row["folder"] - row["scratch"] for row in rows)
    longest = max(row["seconds"] for row in rows)
    print(f"gain over scratch in the same time: {gain:.1f} points; the longest command took {longest} s")


def save_images(data: Path, root: Path, classes: list[str], seed: int) -> None:
    """``root/train/CLASS/N.png`` and ``root/test/CLASS/N.png``, drawn with ``seed``."""
    opened = open_path(data, format="cifar10")
    draws = np.random.default_rng(seed)
    for part, total in (("train", TRAIN * len(classes)), ("test", TEST)):
        source = opened.part(part)
        labels = source.read(np.arange(len(source))).targets
        for number, name in enumerate(classes):
            count = total // len(classes) + (number < total % len(classes))
            chosen = draws.permutation(np.flatnonzero(labels == source.classes.index(name)))[:count]
            folder = root / part / name
            folder.mkdir(parents=True)
            images = source.read(chosen).images
            for index, pixels in zip(chosen.tolist(), np.asarray(images), strict=True):
                Image.fromarray(pixels).save(folder / f"{index}.png")


def measure(root: Path, seed: int) -> dict[str, Any]:
    """Test accuracies in percent, and the seconds of the folder's command."""
    run, photos = root / "run", f"{root}/photos"
    start = time.perf_counter()
    subprocess.run(
        [FOVEAL, "train", photos, "--run", str(run), "--seed", str(seed)],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    seconds = time.perf_counter() - start
    pretrained = foveal.evaluate(run)
    recipe = folder_recipe(Path(photos), [f"seed.init={seed}", f"seed.data={seed}"])
    scratch = recipe.model_copy(
        update={
            "init": None,
            "head": None,
            "freeze_batch_norm": False,
            "model": recipe.model.model_copy(update={"options": {"survival": 1.0, "norm_memory": 0.9}}),
            "optimizer": recipe.optimizer.model_copy(update={"learning_rate": 1e-3}),
            "evaluation": Evaluation(every=Frequency(0, "never"), batch_size=64),
        }
    )
    return {
        "folder": 100 * pretrained.accuracy,
        "scratch": 100 * train_for(scratch, root / "scratch", seconds),
        "small": 100 * train_small(recipe, root / "small"),
        "seconds": round(seconds, 1),
        "step": pretrained.step,
    }


def train_for(recipe: foveal.Recipe, run: Path, seconds: float) -> float:
    """The test accuracy after about so many seconds: steps are counted from a short run's rate."""
    short = recipe.model_copy(update={"steps": 3, "epochs": None})
    rate = foveal.train(short, run.with_name("short")).train_seconds / 3
    steps = max(1, round(seconds / rate))
    result = foveal.train(recipe.model_copy(update={"steps": steps, "epochs": None}), run)
    assert result.accuracy is not None
    return result.accuracy


def train_small(recipe: foveal.Recipe, run: Path) -> float:
    """The test accuracy of a small network on small images."""
    changes = [
        "epochs=100",
        "model={name='small_cnn', options={widths=[32, 64, 128], kernel=3, stride=1, padding=true}}",
        "augmentation=[{name='pad_crop', pixels=4}, {name='flip'}]",
        "preprocessing=[]",
        "freeze_batch_norm=false",
        "optimizer.learning_rate=1e-3",
        "evaluation={batch_size=64}",
    ]
    small = foveal.override_recipe(recipe.model_copy(update={"init": None, "head": None}), changes)
    accuracy = foveal.train(small, run).accuracy
    assert accuracy is not None
    return accuracy


if __name__ == "__main__":
    main()
