"""Saving and loading the state of Inception v3 beside PyTorch, safetensors and TensorFlow.

    python benchmarks/checkpoint.py --shapes inception_v3_variables.json --tensorflow PYTHON

The state has the variables of the file (a JSON object: name to shape), each with a momentum and an average.
All contenders save the same tensors, in turn, round after round; the table has medians. Peers do not force
what they write to the disk: they are measured as they are, and with an fsync of their files and folder.
Loading is from the system's cache of the disk; safetensors only maps the file, and reads it when it is used.
TensorFlow has a process of its own, for as many rounds.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import tempfile
import time
import warnings
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import machine
import numpy as np
import safetensors.torch
import torch
import torch.distributed.checkpoint as dcp
from peers.storage import timed, timed_and_forced
from train_step import NETWORKS

from foveal.checkpoints.layout import read_checkpoint, write_checkpoint
from foveal.checkpoints.manager import CheckpointManager
from foveal.checkpoints.retention import Newest
from foveal.checkpoints.saver import CheckpointSaver
from foveal.device import keep_freed_memory, processors

if TYPE_CHECKING:
    from collections.abc import Callable

PARTS = ("model", "optimizer", "ema")
CHUNK = 1 << 20


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", type=Path, required=True, help="JSON: name of a variable to its shape")
    parser.add_argument("--folder", type=Path, help="where to write; by default, a temporary folder")
    parser.add_argument("--tensorflow", help="the Python of an environment that has TensorFlow")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(processors())
    keep_freed_memory()  # as foveal's programs do; it helps every contender that loads
    warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # as it should be
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        contest = Contest(json.loads(options.shapes.read_text()), Path(folder))
        print(machine.describe())
        print(f"{contest.nbytes / 1e6:.0f} MB in {3 * len(contest.state['model'])} tensors\n")
        contest.run(options.rounds)
        if options.tensorflow:
            contest.add(tensorflow(options.tensorflow, options.shapes, Path(folder) / "tf", options.rounds))
        contest.report()
        training_cost(contest.state, Path(folder) / "training", options.rounds)


class Contest:
    """The state, and what each contender took for it."""

    def __init__(self, shapes: dict[str, list[int]], folder: Path) -> None:
        generator = torch.Generator().manual_seed(0)
        self.state = {
            part: {
                name.replace("/", "."): torch.randn(shape, generator=generator)
                for name, shape in shapes.items()
            }
            for part in PARTS
        }
        self.flat = {f"{part}.{name}": tensor for part in PARTS for name, tensor in self.state[part].items()}
        self.nbytes = sum(tensor.nbytes for tensor in self.flat.values())
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self._folder = folder
        self._noise = np.random.default_rng(0).integers(0, 256, self.nbytes, dtype=np.uint8)
        self._copies = [torch.empty_like(tensor) for tensor in self.flat.values()]

    def run(self, rounds: int) -> None:
        """Let each contender have its turn, round after round; the first round is a warm-up."""
        saver = CheckpointSaver(CheckpointManager(self._folder / "async"), [Newest(1)], asynchronous=True)
        for number in range(rounds + 1):
            self.add(self._write())
            self.add(self._stall(saver, number))
            if number == 0:
                self.seconds.clear()
        saver.close()

    def add(self, measured: dict[str, Any]) -> None:
        """Note seconds by name: a number, or a list of them."""
        for name, seconds in measured.items():
            self.seconds[name] += seconds if isinstance(seconds, list) else [seconds]

    def _write(self) -> dict[str, float]:
        """What saving and loading takes whoever waits for it."""
        raw, ours, theirs = (self._folder / name for name in ("raw", "foveal", "peer"))
        flat = self.flat
        result = {
            "raw write, fsync": timed_and_forced(self._write_raw, raw)[1],
            "foveal save": timed(lambda: write_checkpoint(ours, self.state, {"step": 1})),
        }
        read_checkpoint(ours)  # what was written is in the system's cache now, wherever it was
        result["foveal load"] = timed(lambda: read_checkpoint(ours))
        shutil.rmtree(ours)
        peers: dict[str, tuple[Callable[[Path], object], Callable[[Path], object]]] = {
            "torch": (lambda path: torch.save(self.state, path), torch.load),
            "safetensors": (
                lambda path: safetensors.torch.save_file(flat, path),
                safetensors.torch.load_file,
            ),
            "torch.distributed": (
                lambda path: dcp.save(flat, checkpoint_id=path, no_dist=True),
                lambda path: dcp.load(
                    {name: torch.empty_like(tensor) for name, tensor in flat.items()},
                    checkpoint_id=path,
                    no_dist=True,
                ),
            ),
        }
        for name, (save, load) in peers.items():
            result[f"{name} save"], result[f"{name} save, fsync"] = timed_and_forced(save, theirs)
            save(theirs)
            load(theirs)
            result[f"{name} load"] = timed(lambda load=load: load(theirs))
            remove(theirs)
        return result

    def _stall(self, saver: CheckpointSaver, step: int) -> dict[str, float]:
        """What saving asynchronously takes before it returns."""

        def copy() -> None:
            for target, tensor in zip(self._copies, self.flat.values(), strict=True):
                target.copy_(tensor)

        result = {
            "copy in memory": timed(copy),
            "foveal stall": timed(lambda: saver.save(step, self.state, {"step": step}, lambda: None)),
        }
        result["foveal stall, then until saved"] = timed(saver.wait)
        path, futures = self._folder / "peer", []
        result["torch.distributed stall"] = timed(
            lambda: futures.append(dcp.async_save(self.flat, checkpoint_id=path, no_dist=True))
        )
        futures[0].result()
        remove(path)
        return result

    def _write_raw(self, path: Path) -> None:
        with path.open("xb", buffering=0) as file:
            for start in range(0, self.nbytes, CHUNK):
                file.write(self._noise[start : start + CHUNK].data)

    def report(self) -> None:
        """Print medians and ratios."""
        print(f"{'':<34}{'ms (median)':>12}{'best':>8}{'GB/s':>8}")
        middle = {name: statistics.median(seconds) for name, seconds in self.seconds.items()}
        for name, seconds in middle.items():
            best = min(self.seconds[name])
            print(f"{name:<34}{seconds * 1e3:>12.0f}{best * 1e3:>8.0f}{self.nbytes / seconds / 1e9:>8.2f}")
        stall = middle["foveal stall"] / middle["copy in memory"]
        rate = middle["raw write, fsync"] / middle["foveal save"]
        print(f"\nstall / one copy in memory: {stall:.2f} (to be at most 1.3)")
        print(f"durable save / raw write and fsync, rates: {rate:.2f} (to be at least 0.9)")
        print(f"verified load: {self.nbytes / middle['foveal load'] / 1e9:.2f} GB/s (to be at least 2)")


def remove(path: Path) -> None:
    """Delete a file or folder."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def tensorflow(python: str, shapes: Path, folder: Path, rounds: int) -> dict[str, list[float]]:
    """The same of TensorFlow's two ways."""
    script = Path(__file__).parent / "peers" / "tensorflow_checkpoint.py"
    command = [python, str(script), str(shapes), str(folder), str(rounds), str(processors())]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    measured: dict[str, list[float]] = json.loads(printed.splitlines()[-1])
    return measured


def training_cost(state: dict[str, dict[str, torch.Tensor]], folder: Path, rounds: int) -> None:
    """Print what a save costs a loop that trains: the time of as many steps with and without it."""
    step, steps = NETWORKS["mnist"].plain_step(), 40
    saver = CheckpointSaver(CheckpointManager(folder), [Newest(1)], asynchronous=True)
    costs = []
    for number in range(rounds + 1):
        times = []
        for saving in (False, True):
            start = time.perf_counter()
            for index in range(steps):
                if saving and index == 0:
                    saver.save(number, state, {"step": number}, lambda: None)
                step()
            times.append(time.perf_counter() - start)
            saver.wait()
        costs.append(times[1] - times[0])
    saver.close()
    middle = statistics.median(costs[1:])
    print(f"\na save while the MNIST tutorial network trains: {middle * 1e3:.0f} ms more for {steps} steps")


if __name__ == "__main__":
    main()
