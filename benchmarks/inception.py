"""Inception v3 on batches of 299 x 299: foveal, and others in environments of their own.

    python benchmarks/inception.py [--peers PYTHON] [--tensorflow PYTHON] [--rounds 3] [--steps 5]

``--peers`` names a Python that has torch, torchvision, onnx, onnxruntime and openvino (what is missing is
left out), ``--tensorflow`` one with TensorFlow. Each contender runs in a process of its own, and they take
turns. A training step is forward, backward and update with the auxiliary head, torchvision's with SGD,
foveal's as its recipe says.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import machine
import torch

from foveal.device import processors
from foveal.machine_rate import best_rate
from foveal.processors import shorten_busy_waiting

FOVEAL = str(Path(sys.executable).with_name("foveal"))
PEER = str(Path(__file__).parent / "peers" / "inception_step.py")
OURS = {
    "foveal, float32": ["--precision", "float32"],
    "foveal, float32, compiled": ["--precision", "float32", "--compile"],
    "foveal, bfloat16": ["--precision", "bfloat16"],
    "foveal, bfloat16, compiled": ["--precision", "bfloat16", "--compile"],
    "foveal, training, float32": ["--precision", "float32", "--mode", "train"],
}
PEERS = {
    "torchvision, eager": "eager",
    "torchvision, channels_last": "channels_last",
    "torchvision, torch.compile": "compiled",
    "torchvision, torch.compile, bfloat16": "compiled_bfloat16",
    "ONNX Runtime": "onnx_runtime",
    "OpenVINO": "openvino",
    "OpenVINO, bfloat16": "openvino_bfloat16",
    "torchvision, training": "train",
}
GIGA_OPERATIONS = 11.42  # for an image: two for each of 5.71 G multiply-adds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peers", help="a Python with torchvision and the like")
    parser.add_argument("--tensorflow", help="a Python with TensorFlow")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--batch", type=int, default=32)
    options = parser.parse_args()
    print(machine.describe())
    medians = in_turn(options)
    base, trained = medians.get("torchvision, eager"), medians.get("torchvision, training")
    print(f"\n{f'batch {options.batch}':<38}{'seconds':>9}{'images/s':>10}{'GFLOP/s':>9}{'vs eager':>10}")
    for name, seconds in medians.items():
        rate, training = options.batch / seconds, "training" in name
        reference = trained if training else base
        compared = f"{reference / seconds:.2f}x" if reference else ""
        achieved = rate * GIGA_OPERATIONS * (3 if training else 1)
        print(f"{name:<38}{seconds:>9.3f}{rate:>10.1f}{achieved:>9.0f}{compared:>10}")
    for dtype in (torch.float32, torch.bfloat16):
        found = best_rate(torch.device("cpu"), dtype)
        print(f"best measured rate, {dtype}: {found.per_second / 1e9:.0f} GFLOP/s ({found.what})")


def in_turn(options: argparse.Namespace) -> dict[str, float]:
    """The median seconds of a batch of each contender that could be measured."""
    tail = [str(options.steps), str(processors()), str(options.batch)]
    bench = [FOVEAL, "bench", "model", "inception_v3", "--batch", str(options.batch), "--json"]
    bench += ["--steps", str(options.steps), "--burn-in", "3"]
    commands = {name: [*bench, *arguments] for name, arguments in OURS.items()}
    if options.tensorflow:
        commands["TensorFlow, Keras"] = [options.tensorflow, PEER, "keras", *tail]
    if options.peers:
        commands |= {name: [options.peers, PEER, contender, *tail] for name, contender in PEERS.items()}
    times: dict[str, list[float]] = {}
    plain = dict(os.environ)
    shorten_busy_waiting()  # as foveal's commands do
    for _ in range(options.rounds):
        for name, command in list(commands.items()):
            environment = os.environ if name.startswith("foveal") else plain
            done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
            if done.returncode:
                print(f"left out: {name}: {done.stderr.strip().splitlines()[-1]}", flush=True)
                del commands[name]
                continue
            times.setdefault(name, []).append(seconds_of(json.loads(done.stdout[done.stdout.index("{") :])))
    return {name: statistics.median(measured) for name, measured in times.items()}


def seconds_of(report: dict[str, Any]) -> float:
    """The median that a contender printed."""
    return float(report["seconds_per_step"] if "seconds_per_step" in report else report["percentiles"]["50"])


if __name__ == "__main__":
    main()
