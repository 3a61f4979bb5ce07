"""Training time and test accuracy of recipes over several seeds, each in a process of its own.

    python benchmarks/time_to_accuracy.py digits mnist mnist-quick --data FOLDER_OF_MNIST [--seeds 5]

What is printed is what ``foveal train RECIPE --seed N --json`` says: the accuracy of the last weights on the
whole test part and ``train_seconds`` (from the first step to the last, with compilation and checkpoints,
without evaluation); and the seconds that the command took, all counted.
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
from typing import Any

import machine

FOVEAL = str(Path(sys.executable).with_name("foveal"))


def main() -> None:
    """Train, and print a row a seed and a summary a recipe."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipes", nargs="+")
    parser.add_argument("--data", help="folder of the data's files, for recipes that need one")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="KEY=VALUE")
    options = parser.parse_args()
    print(machine.describe())
    for recipe in options.recipes:
        results = []
        for seed in range(options.seeds):
            settings = [argument for setting in options.settings for argument in ("--set", setting)]
            data = ["--data", options.data] if options.data and recipe != "digits" else []
            results.append(train([recipe, "--seed", str(seed), *data, *settings]))
            accuracy, seconds = results[-1]["accuracy"], results[-1]["train_seconds"]
            print(
                f"{recipe:<16} seed {seed}  {accuracy:.2%}  {seconds:7.2f} s, "
                f"{results[-1]['whole_seconds']:7.2f} s in all",
                flush=True,
            )
        print(summary(recipe, results), flush=True)


def train(arguments: list[str]) -> dict[str, Any]:
    """The result of one run in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        command = [FOVEAL, "train", *arguments, "--run", f"{folder}/run", "--json"]
        start = time.perf_counter()
        printed = subprocess.run(
            command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ).stdout
        whole_seconds = time.perf_counter() - start
    result: dict[str, Any] = json.loads(printed) | {"whole_seconds": whole_seconds}
    return result


def summary(recipe: str, results: list[dict[str, Any]]) -> str:
    """Mean, spread and extremes over the seeds."""
    accuracies = [result["accuracy"] for result in results]
    seconds, whole = ([result[key] for result in results] for key in ("train_seconds", "whole_seconds"))
    spread = statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0
    return (
        f"{recipe:<16} mean {statistics.mean(accuracies):.3%} (deviation {spread:.3%}, "
        f"lowest {min(accuracies):.2%}), {len(results)} seeds; "
        f"training {statistics.median(seconds):.2f} s (median), {max(seconds):.2f} s (longest); "
        f"in all {statistics.median(whole):.2f} s (median), {max(whole):.2f} s (longest)"
    )


if __name__ == "__main__":
    main()
