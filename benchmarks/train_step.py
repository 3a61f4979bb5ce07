"""A training step of a tutorial's network: foveal, plain PyTorch, and TensorFlow where it is installed.

    python benchmarks/train_step.py mnist [--data FOLDER] [--tensorflow PYTHON] [--rounds 5] [--steps 40]
    python benchmarks/train_step.py cifar10 [--tensorflow PYTHON]

Each contender runs in a process of its own, and they take turns, so that a machine that slows down slows all
of them. Plain PyTorch is what a tutorial would write: float32, NCHW, ReLU before pooling, torch.optim.SGD as
it comes, nn.LocalResponseNorm. With ``mnist``, the training loop is then run on real batches; the time
outside forward, backward and optimizer is its overhead.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
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
from foveal.processors import shorten_busy_waiting
from foveal.recipe import override
from foveal.recipes import load
from foveal.run_folder import RunFolder
from foveal.training.console import Silent
from foveal.training.session import Session
from foveal.training.step import PreparedBatch, TrainStep

if TYPE_CHECKING:
    from collections.abc import Callable


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("network", choices=NETWORKS)
    parser.add_argument("--data", type=Path, help="folder of MNIST's files; without it, random images")
    parser.add_argument("--tensorflow", help="the Python of an environment that has TensorFlow")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(processors())
    network = NETWORKS[options.network]
    if options.contender:
        step = network.contenders()[options.contender]()
        print(json.dumps({"seconds_per_step": measure(step, options.steps)}))
        return
    print(machine.describe())
    medians = in_turn(network, options.network, options)
    base = medians["plain PyTorch, float32"]
    title = f"training step, batch {network.batch}"
    print(f"\n{title:<28}{'ms (median)':>12}{'examples/s':>12}{'vs plain':>10}")
    for name, middle in medians.items():
        print(f"{name:<28}{middle * 1000:>12.2f}{network.batch / middle:>12,.0f}{base / middle:>9.2f}x")
    if options.network == "mnist":
        share, per_step = loop_overhead(options.data)
        print(f"\nloop overhead, float32: {share:.2%} of {per_step * 1000:.2f} ms a step")


def in_turn(network: Network, name: str, options: argparse.Namespace) -> dict[str, float]:
    """The median seconds of a step of each contender."""
    steps = str(options.steps)
    commands = {
        contender: [sys.executable, __file__, name, "--contender", contender, "--steps", steps]
        for contender in CONTENDERS
    }
    if options.tensorflow:
        script = Path(__file__).parent / "peers" / network.tensorflow
        commands["TensorFlow, float32"] = [options.tensorflow, str(script), steps, str(processors())]
    times: dict[str, list[float]] = {contender: [] for contender in commands}
    plain = dict(os.environ)
    shorten_busy_waiting()  # as foveal's commands do
    for _ in range(options.rounds):
        for contender, command in commands.items():
            environment = os.environ if contender.startswith("foveal") else plain
            printed = subprocess.run(
                command, check=True, capture_output=True, text=True, env=environment
            ).stdout
            times[contender].append(json.loads(printed.splitlines()[-1])["seconds_per_step"])
    return {contender: statistics.median(measured) for contender, measured in times.items()}


def measure(step: Callable[[], object], steps: int) -> float:
    """The median seconds of a call, after a warm-up."""
    times = []
    for _ in range(steps + 10):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return statistics.median(times[10:])


@dataclass(frozen=True)
class Network:
    """A tutorial's network and training.

    Attributes:
        recipe: its name among foveal's.
        batch: examples in a step.
        shape: height, width and channels of an image.
        plain: the network as a PyTorch tutorial would write it.
        optimizer: of plain PyTorch.
        tensorflow: the script that measures TensorFlow.
    """

    recipe: str
    batch: int
    shape: tuple[int, int, int]
    plain: Callable[[], nn.Sequential]
    optimizer: Callable[[nn.Sequential], torch.optim.Optimizer]
    tensorflow: str

    def contenders(self) -> dict[str, Callable[[], Callable[[], object]]]:
        """By name, what makes a step."""
        ours = [lambda precision=precision: self.foveal_step(precision) for precision in PRECISIONS]
        return dict(zip(CONTENDERS, [self.plain_step, *ours], strict=True))

    def plain_step(self) -> Callable[[], object]:
        """What a PyTorch tutorial would write."""
        torch.manual_seed(0)
        model = self.plain()
        optimizer = self.optimizer(model)
        height, width, channels = self.shape
        images, targets = torch.rand(self.batch, channels, height, width), torch.randint(10, (self.batch,))

        def step() -> None:
            optimizer.zero_grad()
            functional.cross_entropy(model(images), targets).backward()
            optimizer.step()

        return step

    def foveal_step(self, precision: str) -> Callable[[], object]:
        """The same through foveal's own step."""
        keep_freed_memory()
        recipe = resolve_machine(override(load(self.recipe), [f"precision={precision}", "device=cpu"]))
        model = build_model(recipe.model, 10, self.shape, seed=0).train()
        train_step = TrainStep(model, recipe, 20_000, torch.device("cpu"))
        positions = np.arange(self.batch)
        images = torch.rand(self.batch, *self.shape).permute(0, 3, 1, 2)
        batch = PreparedBatch(
            images, torch.randint(10, (self.batch,)), Sample(positions, positions, positions)
        )
        return lambda: train_step(0, batch)


def plain_mnist() -> nn.Sequential:
    """Of the tf.layers tutorial."""
    return nn.Sequential(
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


def plain_cifar10() -> nn.Sequential:
    """Of the CIFAR-10 tutorial; its alpha is that of a sum, PyTorch's that of a mean."""
    return nn.Sequential(
        nn.Conv2d(3, 64, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, padding=1),
        nn.LocalResponseNorm(9, alpha=0.001, beta=0.75, k=1.0),
        nn.Conv2d(64, 64, 5, padding=2),
        nn.ReLU(),
        nn.LocalResponseNorm(9, alpha=0.001, beta=0.75, k=1.0),
        nn.MaxPool2d(3, 2, padding=1),
        nn.Flatten(),
        nn.Linear(6 * 6 * 64, 384),
        nn.ReLU(),
        nn.Linear(384, 192),
        nn.ReLU(),
        nn.Linear(192, 10),
    )


def sgd(model: nn.Sequential) -> torch.optim.Optimizer:
    """Without decay."""
    return torch.optim.SGD(model.parameters(), lr=0.001)


def decayed_sgd(model: nn.Sequential) -> torch.optim.Optimizer:
    """With the decay of the CIFAR-10 tutorial's two dense layers."""
    decayed = [model[9].weight, model[11].weight]
    others = [each for each in model.parameters() if all(each is not other for other in decayed)]
    return torch.optim.SGD([{"params": decayed, "weight_decay": 0.004}, {"params": others}], lr=0.1)


PRECISIONS = ("float32", "bfloat16")
CONTENDERS = ("plain PyTorch, float32", *(f"foveal, {precision}" for precision in PRECISIONS))
NETWORKS = {
    "mnist": Network("mnist-tutorial", 100, (28, 28, 1), plain_mnist, sgd, "tensorflow_mnist_step.py"),
    "cifar10": Network(
        "cifar10-tutorial", 128, (24, 24, 3), plain_cifar10, decayed_sgd, "tensorflow_cifar10_step.py"
    ),
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
