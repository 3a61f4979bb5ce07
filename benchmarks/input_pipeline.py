"""Reading, decoding and distorting: foveal beside tf.data, PyTorch's DataLoader and Grain, on the same files.

    sh benchmarks/peers/make_environments.sh FOLDER
    python benchmarks/input_pipeline.py --environments FOLDER --data CIFAR-10 --photos FOLDER_OF_JPEG_FILES

Each contender runs in a process of its own, in its own environment, on the same two processors, and they
take turns, so that a machine that slows down slows all of them. After a warm-up, whole batches are counted
for some seconds. The works:

    cifar    the CIFAR-10 tutorial's distorted inputs: the binary files to shuffled float32 batches of 128
    photos   JPEG files to uint8 of 299 x 299
    digits   a TFRecord file of Examples of 28 x 28 bytes and a label to columns, batches of 128
    numbers  a TFRecord file of Examples of four floats and a label to columns, batches of 128
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import machine
import numpy as np

from foveal.tensorflow.example import build_example
from foveal.tensorflow.record_writer import RecordWriter

HERE = Path(__file__).parent
PROCESSORS = 2


@dataclass(frozen=True)
class Contender:
    """Who does a work.

    Attributes:
        title: its row in the table.
        library: ``foveal`` or the name of a peer's environment; also says which script.
        name: what that script calls it.
        ratios: heads the column of its rate over each peer's; foveal's only.
    """

    title: str
    library: str
    name: str
    ratios: str = ""

    def command(self, environments: Path | None, path: Path) -> list[str] | None:
        """What runs it on the files at ``path``; None where it has no environment."""
        if self.library == "foveal":
            return [sys.executable, str(HERE / "foveal_input.py"), self.name, str(path)]
        if environments is None or not (environments / self.library).is_dir():
            return None
        python = environments / self.library / "bin" / "python"
        return [str(python), str(HERE / "peers" / f"{self.library}_input.py"), self.name, str(path)]


@dataclass(frozen=True)
class Work:
    """What all contenders do.

    Attributes:
        title: heads the table.
        dtype: of what comes out.
        shape: of one example of it; the order of the axes is the contenders' own.
        contenders: foveal first.
    """

    title: str
    dtype: str
    shape: tuple[int, ...]
    contenders: tuple[Contender, ...]

    def check(self, contender: Contender, result: dict[str, Any]) -> None:
        """Stop where something else came out than what was to be made."""
        if sorted(result["shape"][1:]) != sorted(self.shape) or self.dtype not in result["dtype"]:
            raise SystemExit(f"{contender.title} gave {result['dtype']} {result['shape']}")


def record_work(title: str, dtype: str, shape: tuple[int, ...], name: str) -> Work:
    """Parsing one of the two TFRecord files."""
    return Work(
        title,
        dtype,
        shape,
        (
            Contender("foveal's loader, random order", "foveal", name, "loader is"),
            Contender("foveal, file order, one thread", "foveal", f"{name}-ordered", "in order"),
            Contender("tf.data, file order", "tensorflow", name),
            Contender("tf.data, file order, batch, then parse", "tensorflow", f"{name}-vectorised"),
        ),
    )


WORKS = {
    "cifar": Work(
        "CIFAR-10 distortion, batch 128",
        "float32",
        (24, 24, 3),
        (
            Contender("foveal, public loader", "foveal", "cifar", "loader is"),
            Contender("foveal, draws and kernel alone", "foveal", "cifar-kernel", "kernel is"),
            Contender("tf.data", "tensorflow", "cifar"),
            Contender("tf.data, vectorised by hand", "tensorflow", "cifar-vectorised"),
            Contender("DataLoader, 2 workers", "torch", "cifar"),
            Contender("Grain, 2 workers", "grain", "cifar"),
            Contender("Grain, 2 workers without threads", "grain", "cifar-unthreaded"),
        ),
    ),
    "photos": Work(
        "JPEG files to 299 x 299",
        "uint8",
        (299, 299, 3),
        (
            Contender("foveal, antialiased", "foveal", "photos", "foveal is"),
            Contender("tf.data, antialiased", "tensorflow", "photos"),
            Contender("tf.data, not antialiased", "tensorflow", "photos-aliased"),
            Contender("DataLoader and Pillow, 2 workers", "torch", "photos"),
        ),
    ),
    "digits": record_work("TFRecord: 784 bytes and a label", "uint8", (784,), "digits"),
    "numbers": record_work("TFRecord: four floats and a label", "float32", (4,), "numbers"),
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--environments", type=Path, help="where the peers' environments are")
    parser.add_argument("--data", type=Path, help="folder of CIFAR-10's binary files")
    parser.add_argument("--photos", type=Path, help="folder of JPEG files")
    parser.add_argument("--works", nargs="+", choices=WORKS, default=list(WORKS))
    parser.add_argument("--records", type=int, default=100_000, help="how many are in a TFRecord file")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="how long a contender is timed in a round")
    parser.add_argument("--warm-up", type=float, default=3.0, help="seconds before that")
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:PROCESSORS])
    load = os.getloadavg()[0]
    print(f"{machine.describe()}; load average at the start {load:.1f}", flush=True)
    timing = ["--seconds", str(options.seconds), "--warm-up", str(options.warm_up)]
    with tempfile.TemporaryDirectory() as folder:
        paths = prepare(options, Path(folder))
        for name in options.works:
            if name not in paths:
                print(f"\n{WORKS[name].title}: left out, no files were given")
                continue
            compare(WORKS[name], options.environments, paths[name], timing, options.rounds)
            if name in FACTS:
                FACTS[name](paths[name])


def prepare(options: argparse.Namespace, folder: Path) -> dict[str, Path]:
    """The files of each work that is wanted and can be done; some are written to ``folder``."""
    paths: dict[str, Path] = {}
    if options.data:
        paths["cifar"] = options.data.resolve()
    if options.photos and "photos" in options.works:
        paths["photos"] = folder / "photos"
        copy_photos(options.photos, paths["photos"])
    for name in {"digits", "numbers"} & set(options.works):
        paths[name] = folder / f"{name}.tfrecord"
        write_records(paths[name], name, options.records)
    return paths


def copy_photos(photos: Path, folder: Path) -> None:
    """The photographs in two subfolders, as a folder of images by class has them."""
    for number, path in enumerate(sorted(photos.iterdir())):
        target = folder / ("even", "odd")[number % 2]
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)


def write_records(path: Path, kind: str, count: int) -> None:
    """A TFRecord file of Examples of noise."""
    generator = np.random.default_rng(0)
    with RecordWriter(path) as writer:
        for number in range(count):
            noise = {"image": generator.bytes(784)} if kind == "digits" else {"values": generator.random(4)}
            writer.write(build_example({**noise, "label": number % 10}))


def compare(work: Work, environments: Path | None, path: Path, timing: list[str], rounds: int) -> None:
    """Time all contenders in turn, and print a row each."""
    commands = {each: each.command(environments, path) for each in work.contenders}
    rates: dict[Contender, list[float]] = {each: [] for each, command in commands.items() if command}
    versions = set()
    for _ in range(rounds):
        for contender, measured in rates.items():
            result = run([*(commands[contender] or []), *timing])
            work.check(contender, result)
            measured.append(result["examples_per_second"])
            versions.add(result["version"])
    print(f"\n{work.title}: examples/s, {rounds} rounds; {', '.join(sorted(versions))}")
    bases = {each.ratios: statistics.median(rates[each]) for each in rates if each.ratios}
    print(f"{'':<40}" + "".join(f"{heading:>11}" for heading in ("median", "lowest", "highest", *bases)))
    for contender, measured in rates.items():
        middle = statistics.median(measured)
        row = "".join(f"{rate:>11,.0f}" for rate in (middle, min(measured), max(measured)))
        ratios = "".join(f"{base / middle:>10.2f}x" for base in bases.values() if not contender.ratios)
        print(f"{contender.title:<40}{row}{ratios}", flush=True)
    missing = sorted({each.library for each in work.contenders} - {each.library for each in rates})
    if missing:
        print(f"left out, as they have no environment: {', '.join(missing)}")


def run(command: list[str], **variables: str) -> dict[str, Any]:
    """What a contender printed."""
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, env={**os.environ, **variables}
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def fact(name: str, path: Path, **variables: str) -> dict[str, Any]:
    """Something else that foveal's script measures."""
    return run([sys.executable, str(HERE / "foveal_input.py"), name, str(path)], **variables)


def cifar_facts(path: Path) -> None:
    """The wait for the first batch, with kernels to be compiled and without, and memory."""
    with tempfile.TemporaryDirectory() as cache:
        cold, *warm = (fact("first-batch", path, NUMBA_CACHE_DIR=cache)["seconds"] for _ in range(6))
    print(
        f"foveal's first batch: {statistics.median(warm):.3f} s; {cold:.1f} s where kernels must be compiled"
    )
    memory = fact("memory", path)
    print(
        f"foveal's memory: an epoch takes {memory['first_epoch'] / 1e6:.0f} MB above the libraries, "
        f"the data included; the {memory['epochs'] - 1} after it {memory['later_epochs'] / 1e6:+.1f} MB"
    )


def photo_facts(path: Path) -> None:
    """How near foveal's photographs are to the reference."""
    found = fact("fidelity", path)
    print(
        f"foveal's PSNR against Pillow: {found['mean']:.1f} dB on average, {found['lowest']:.1f} dB at least"
    )


FACTS = {"cifar": cifar_facts, "photos": photo_facts}


if __name__ == "__main__":
    main()
