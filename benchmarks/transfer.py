"""A few steps on 200 images of five digits: from random weights, and from weights that learnt before.

    python benchmarks/transfer.py --data FOLDER_OF_MNIST [--run RUN_OF_MNIST] [--seeds 5]

The task: tell the digits 5 to 9 apart after some steps of the recipe ``mnist``, 50 images each, on 200
training images. The accuracy is that on all 4,861 test images of these digits. A seed chooses the images, the
first weights and the order. Three starts; the classifier's own weights are random in all of them:

    scratch          random weights
    mnist            a run of ``mnist`` on all ten digits: it has seen these five before
    other digits     a run of ``mnist`` on the digits 0 to 4 alone, so only features are transferred

Each start is measured at several learning rates, so that none wins by a rate that suits it better.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import machine
import numpy as np

import foveal
from foveal.data.catalog import open_data
from foveal.data.source import labels_of
from foveal.recipe import DataPart

if TYPE_CHECKING:
    from collections.abc import Sequence

EXAMPLES, BATCH = 200, 50
TASK, OTHERS = ("5", "6", "7", "8", "9"), ("0", "1", "2", "3", "4")
RATES = (0.02, 0.05, 0.1, 0.5)
STEPS = (5, 10, 50)


def digits(folder: str, classes: Sequence[str], examples: int | None = None, seed: int = 0) -> foveal.DataSet:
    """MNIST with these classes only, and of its training part a random choice of ``examples``.

    The recipes below name this function as their data.
    """
    data = open_data(DataPart(name="mnist", path=Path(folder)))
    assert data.test is not None
    train, test = (_only(part, classes) for part in (data.train, data.test))
    if examples is not None:
        train = foveal.subset(train, np.random.default_rng(seed).permutation(len(train))[:examples])
    return foveal.DataSet(train, test=test)


def main() -> None:
    """Train the sources, then the task from each start, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of MNIST's files")
    parser.add_argument("--run", type=Path, help="a run of the recipe mnist; without it, one is trained")
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    folder = str(options.data.resolve())
    print(machine.describe())
    seeds = f"lowest to highest of {options.seeds} seeds"
    print(f"{'start':<14} {'steps':>5}  {'rate':>5}  {'mean':>7}  deviation  {seeds}")
    with tempfile.TemporaryDirectory() as scratch:
        everything = options.run or Path(scratch, "mnist")
        if options.run is None:
            foveal.train(
                foveal.override_recipe(foveal.load_recipe("mnist"), [f"data.path={folder}"]), everything
            )
        others = Path(scratch, "others")
        foveal.train(_recipe(folder, OTHERS), others)
        for start, run in (("scratch", None), ("mnist", everything), ("other digits", others)):
            for steps, rate in itertools.product(STEPS, RATES):
                accuracies = [_accuracy(folder, steps, rate, run, seed) for seed in range(options.seeds)]
                print(_row(f"{start:<14} {steps:>5}  {rate:>5}", accuracies), flush=True)


def _only(source: foveal.Source, classes: Sequence[str]) -> foveal.Source:
    """The examples of these classes, which become 0, 1, ... in this order."""
    wanted = np.isin(labels_of(source), [source.classes.index(name) for name in classes])
    kept = foveal.subset(source, np.flatnonzero(wanted))
    absent = dict.fromkeys(set(source.classes) - set(classes), classes[0])  # no example has one any more
    return foveal.relabel(kept, absent, classes)


def _recipe(folder: str, classes: Sequence[str], *changes: str) -> foveal.Recipe:
    """The recipe ``mnist`` on some of the digits."""
    data = [
        "data.name=transfer:digits",
        f"data.options.folder={folder}",
        f"data.options.classes={list(classes)}",
    ]
    return foveal.override_recipe(foveal.load_recipe("mnist"), [*data, *changes])


def _accuracy(folder: str, steps: int, rate: float, start: Path | None, seed: int) -> float:
    """The test accuracy of the task from a start."""
    changes = [
        f"data.options.examples={EXAMPLES}",
        f"data.options.seed={seed}",
        f"batch_size={BATCH}",
        f"steps={steps}",
        f"optimizer.learning_rate={rate}",
        f"seed={{init={seed}, data={seed}}}",
    ]
    if start is not None:
        changes += [f"init.path={start.resolve()}", "init.skip=['^logits']"]
    recipe = _recipe(folder, TASK, *changes)
    with tempfile.TemporaryDirectory() as run:
        accuracy = foveal.train(recipe, Path(run, "run")).accuracy
    assert accuracy is not None
    return accuracy


def _row(title: str, accuracies: Sequence[float]) -> str:
    spread = statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0
    extremes = f"{min(accuracies):.2%} to {max(accuracies):.2%}"
    return f"{title}  {statistics.mean(accuracies):7.2%}  {spread:9.2%}  {extremes}"


if __name__ == "__main__":
    main()
