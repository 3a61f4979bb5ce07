"""A training step of the MNIST tutorial network: foveal, plain PyTorch, and TensorFlow where it is installed.

    python benchmarks/train_step.py [--data FOLDER] [--tensorflow PYTHON] [--rounds 5] [--steps 40]

Each contender runs in a process of its own, and they take turns, so that a machine that slows down slows all
of them. Plain PyTorch is what a tutorial would write: float32, NCHW, ReLU before pooling, torch.optim.SGD as
it comes. Then the training loop is run on real batches; the time outside forward, backward and optimizer is
its overhead.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import machine
import numpy as np
import torch
from torch import nn
from torch.nn import functional

from foveal.data.catalog import open_data
from foveal.data.sampler import Sample
from foveal.data.source import ArraySource, DataSet
from foveal.device import configured, keep_freed_memory, processors, resolve_machine
from foveal.models.registry import build_model
from foveal.recipe import override
from foveal.recipes import load
from foveal.run_folder import RunFolder
from foveal.training.console import Silent
from foveal.training.session import Session
from foveal.training.step import PreparedBatch, TrainStep

if TYPE_CHECKING:
    from collections.abc import Callable

BATCH = 100


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder of MNIST's files; without it, random images")
    parser.add_argument("--tensorflow", help="the Python of an environment that has TensorFlow")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(processors())
    if options.contender:
        print(json.dumps({"seconds_per_step": measure(CONTENDERS[options.contender](), options.steps)}))
        return
    print(machine.describe())

    arguments = [str(options.steps), str(processors())]
    commands = {
        name: [sys.executable, __file__, "--contender", name, "--steps", arguments[0]] for name in CONTENDERS
    }
    if options.tensorflow:
        script = Path(__file__).parent / "peers" / "tensorflow_mnist_step.py"
        commands["TensorFlow, float32"] = [options.tensorflow, str(script), *arguments]
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(options.rounds):
        for name, command in commands.items():
            printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            times[name].append(json.loads(printed.splitlines()[-1])["seconds_per_step"])
    medians = {name: statistics.median(measured) for name, measured in times.items()}
    base = medians["plain PyTorch, float32"]
    print(f"\n{'training step, batch 100':<28}{'ms (median)':>12}{'examples/s':>12}{'vs plain':>10}")
    for name, middle in medians.items():
        print(f"{name:<28}{middle * 1000:>12.2f}{BATCH / middle:>12,.0f}{base / middle:>9.2f}x")
    share, per_step = loop_overhead(options.data)
    print(f"\nloop overhead, float32: {share:.2%} of {per_step * 1000:.2f} ms a step")


def measure(step: Callable[[], object], steps: int) -> float:
    """The median seconds of a call, after a warm-up."""
    times = []
    for _ in range(steps + 10):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return statistics.median(times[10:])


def plain_step() -> Callable[[], object]:
    """The tutorial's network as a PyTorch tutorial would train it."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 32, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(7 * 7 * 64, 1024),
        nn.ReLU(),
        nn.Dropout(0.4),
        nn.Linear(1024, 10),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
    images, targets = torch.rand(BATCH, 1, 28, 28), torch.randint(10, (BATCH,))

    def step() -> None:
        optimizer.zero_grad()
        functional.cross_entropy(model(images), targets).backward()
        optimizer.step()

    return step


def foveal_step(precision: str) -> Callable[[], object]:
    """The same through foveal's own step."""
    keep_freed_memory()
    recipe = resolve_machine(override(load("mnist-tutorial"), [f"precision={precision}", "device=cpu"]))
    model = build_model(recipe.model, 10, (28, 28, 1), seed=0).train()
    train_step = TrainStep(model, recipe, 20_000, torch.device("cpu"))
    positions = np.arange(BATCH)
    images = torch.rand(BATCH, 28, 28, 1).permute(0, 3, 1, 2)
    batch = PreparedBatch(images, torch.randint(10, (BATCH,)), Sample(positions, positions))
    return lambda: train_step(0, batch)


CONTENDERS: dict[str, Callable[[], Callable[[], object]]] = {
    "plain PyTorch, float32": plain_step,
    "foveal, float32": lambda: foveal_step("float32"),
    "foveal, bfloat16": lambda: foveal_step("bfloat16"),
}


def loop_overhead(folder: Path | None, steps: int = 300) -> tuple[float, float]:
    """The share of a training loop's time that is spent outside its steps, and the time of a step."""
    settings = [
        "precision=float32",
        f"steps={steps}",
        "logging.every=100 steps",
        "checkpoint.every=never",
        "evaluation.every=never",
        "device=cpu",
        "data.validation=0",
    ]
    recipe = resolve_machine(override(load("mnist-tutorial"), settings))
    data = open_data(recipe.data.model_copy(update={"path": folder})) if folder else random_digits()
    with tempfile.TemporaryDirectory() as run, configured(recipe):
        session = Session(recipe, DataSet(data.train), Silent())
        session.open(RunFolder(Path(run)))
        session.learner.train_step = timed = TimedStep(session.learner.train_step)
        with session.batches() as batches:
            start = time.perf_counter()
            for batch in batches:
                session.train(batch)
            total = time.perf_counter() - start
        session.close()
    return 1 - timed.seconds / total, total / steps


class TimedStep:
    """A training step that counts the time it takes."""

    def __init__(self, step: TrainStep) -> None:
        self._step, self.seconds = step, 0.0

    def __call__(self, number: int, batch: PreparedBatch) -> object:
        """Do the step."""
        start = time.perf_counter()
        loss = self._step(number, batch)
        self.seconds += time.perf_counter() - start
        return loss

    def __getattr__(self, name: str) -> object:
        return getattr(self._step, name)


def random_digits() -> DataSet:
    """As many images as MNIST has, of noise."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (60_000, 28, 28, 1), dtype=np.uint8)
    return DataSet(ArraySource(images, generator.integers(0, 10, 60_000), tuple("0123456789")))


if __name__ == "__main__":
    main()
