"""Reading, writing and listing TensorFlow's checkpoints beside TensorFlow.

    python benchmarks/tensorflow_files.py --shapes inception_v3_variables.json --tensorflow PYTHON

The checkpoint has the variables of the file (a JSON object: name to shape), each with a momentum and an
average; the one that is only listed has 10,000 small variables. Both read the same files from the system's
cache of the disk, verify every checksum, and take their turns; TensorFlow has a process of its own, which
waits meanwhile. The table has medians; ``first`` is the first time in the process. TensorFlow does not force
what it writes to the disk, and foveal always does: each is measured as it is, and as the other is.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections import defaultdict
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import machine
import numpy as np
from peers.storage import timed, timed_and_forced

from foveal.checkpoints.checksum import crc32c
from foveal.device import keep_freed_memory
from foveal.tensorflow.bundle_writer import write_bundle
from foveal.tensorflow.checkpoint import Checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    Ask = Callable[[str, Path], Any]  # the peer's answer to a request: the work and a prefix

PARTS = ("", "/Momentum", "/ExponentialMovingAverage")
CHUNK = 1 << 19  # bytes
TARGETS = {  # by a contender and its peer: how many times as fast it is to be
    ("read: foveal", "read: TensorFlow"): 1.5,
    ("write: foveal, durable", "write: TensorFlow Saver, then fsync"): 1.2,
    ("write: foveal, fsync left out", "write: TensorFlow Saver"): None,
    ("write: foveal, durable", "write: TensorFlow Saver"): None,
    ("list: foveal", "list: TensorFlow"): None,
    ("read V1: foveal", "read V1: TensorFlow"): None,
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", type=Path, required=True, help="JSON: name of a variable to its shape")
    parser.add_argument("--folder", type=Path, help="where to write; by default, a temporary folder")
    parser.add_argument("--tensorflow", help="the Python of an environment that has TensorFlow")
    parser.add_argument("--variables", type=int, default=10_000, help="how many are listed")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    keep_freed_memory()  # as foveal's programs do; TensorFlow keeps its own
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        contest = Contest(json.loads(options.shapes.read_text()), options.variables, Path(folder))
        print(f"{machine.describe()}; load {os.getloadavg()[0]:.1f}")
        print(f"{contest.nbytes / 1e6:.0f} MB in {len(contest.tensors)} tensors")
        peer = tensorflow(options.tensorflow, contest.shapes_file) if options.tensorflow else nullcontext()
        with peer as ask:
            contest.run(options.rounds, ask)
        contest.report()


class Contest:
    """The tensors, the files, and the seconds that each contender took."""

    def __init__(self, shapes: dict[str, list[int]], variables: int, folder: Path) -> None:
        generator = np.random.default_rng(0)
        self.tensors = {
            f"{name}{part}": generator.standard_normal(shape, np.float32)
            for name, shape in shapes.items()
            for part in PARTS
        }
        self.nbytes = sum(each.nbytes for each in self.tensors.values())
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self._variables = variables
        self._written, self._many, self._v1 = folder / "new" / "m", folder / "many", folder / "v1"
        self._prefix = folder / "model"
        self._memory = np.zeros(self.nbytes, np.uint8)
        write_bundle(self._prefix, self.tensors)
        small = np.zeros((3, 3), np.float32)
        write_bundle(self._many, {f"tower_{i % 10}/layer_{i}/weights": small for i in range(variables)})
        self.shapes_file = folder / "shapes.json"
        self.shapes_file.write_text(json.dumps({name: each.shape for name, each in self.tensors.items()}))

    def run(self, rounds: int, ask: Ask | None) -> None:
        """Let each contender have its turn, round after round, with the peer where there is one."""
        if ask is not None:
            self._v1 = Path(ask("write_v1", self._v1))
        for _ in range(rounds + 1):
            self._read(ask)
            self._write(ask)
            self._list(ask)
            if ask is not None:
                self._read_v1(ask)

    def _note(self, name: str, seconds: float) -> None:
        self.seconds[name].append(seconds)

    def _read(self, ask: Ask | None) -> None:
        self._note("read: as bytes, with their CRC, by one thread", timed(self._read_raw))
        self._note("read: foveal", self._timed_read(self._prefix))
        if ask is not None:
            self._note("read: TensorFlow", self._checked(ask("read", self._prefix)))

    def _read_v1(self, ask: Ask) -> None:
        self._note("read V1: foveal", self._timed_read(self._v1))
        self._note("read V1: TensorFlow", self._checked(ask("read", self._v1)))

    def _write(self, ask: Ask | None) -> None:
        folder = self._written.parent

        def save(_: Path) -> None:
            write_bundle(self._written, self.tensors)

        timed_and_forced(self._write_raw, folder)  # whoever is first has the system find memory for its cache
        self._note("write: bytes, fsync", timed_and_forced(self._write_raw, folder)[1])
        self._note("write: foveal, durable", timed(lambda: save(folder)))
        shutil.rmtree(folder)
        with mock.patch("os.fsync"):
            self._note("write: foveal, fsync left out", timed(lambda: save(folder)))
        shutil.rmtree(folder)
        if ask is not None:
            answer = ask("write", self._written)
            self._note("write: TensorFlow Saver", answer["returned"])
            self._note("write: TensorFlow Saver, then fsync", answer["forced"])

    def _list(self, ask: Ask | None) -> None:
        start = time.perf_counter()
        found = Checkpoint(self._many)
        listed = [(name, found.shape(name), found.dtype(name)) for name in found.names()]
        self._note("list: foveal", time.perf_counter() - start)
        self._require(len(listed), self._variables)
        if ask is not None:
            answer = ask("names", self._many)
            self._note("list: TensorFlow", answer["seconds"])
            self._require(answer["tensors"], self._variables)

    def _timed_read(self, path: Path) -> float:
        start = time.perf_counter()
        arrays = Checkpoint(path).read()
        seconds = time.perf_counter() - start
        nbytes = sum(each.nbytes for each in arrays.values())
        return self._checked({"seconds": seconds, "tensors": len(arrays), "nbytes": nbytes})

    def _checked(self, answer: dict[str, Any]) -> float:
        """The seconds of an answer, once it is known that all tensors were read."""
        self._require(answer["tensors"], len(self.tensors))
        self._require(answer["nbytes"], self.nbytes)
        return float(answer["seconds"])

    def _require(self, found: int, expected: int) -> None:
        if found != expected:
            raise SystemExit(f"a contender did other work: {found}, not {expected}")

    def _read_raw(self) -> None:
        """What nobody can do without: every byte is copied to memory, and checksummed there."""
        crc = 0
        with Path(f"{self._prefix}.data-00000-of-00001").open("rb", buffering=0) as file:
            for chunk in chunks(self._memory):
                file.readinto(chunk.data)
                crc = crc32c(chunk, crc)

    def _write_raw(self, folder: Path) -> None:
        folder.mkdir()
        with (folder / "raw").open("xb", buffering=0) as file:
            for chunk in chunks(self._memory):
                file.write(chunk.data)

    def report(self) -> None:
        """Print medians and ratios."""
        print(f"\n{'':<48}{'first':>8}{'median':>8}{'best':>8}  ms{'GB/s':>8}")
        middle = {}
        for name, (first, *rest) in self.seconds.items():
            middle[name] = statistics.median(rest)
            rate = "" if name.startswith("list") else f"{self.nbytes / middle[name] / 1e9:.2f}"
            shown = "".join(f"{each * 1e3:>8.1f}" for each in (first, middle[name], min(rest)))
            print(f"{name:<48}{shown}{rate:>12}")
        print()
        for (ours, theirs), target in TARGETS.items():
            if theirs in middle:
                wanted = f" (to be at least {target})" if target else ""
                ratio = middle[theirs] / middle[ours]
                print(f"{ours}, as fast as {theirs.split(': ')[1]}: {ratio:.2f} times{wanted}")
        print(
            f"a checkpoint of {self._variables} variables is opened and listed in "
            f"{middle['list: foveal'] * 1e3:.0f} ms (to be at most 50 for 10,000)"
        )


def chunks(memory: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    """Its parts, small enough for the processor's cache."""
    return (memory[start : start + CHUNK] for start in range(0, len(memory), CHUNK))


@contextmanager
def tensorflow(python: str, shapes: Path) -> Iterator[Ask]:
    """A process of TensorFlow with variables of some shapes, which does what it is asked."""
    script = Path(__file__).parent / "peers" / "tensorflow_files.py"
    command = [python, str(script), str(shapes)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        requests, answers = process.stdin, process.stdout
        assert requests is not None  # both are pipes
        assert answers is not None

        def answer() -> Any:
            if not (line := answers.readline()):
                raise SystemExit("TensorFlow's process has ended: its message is above")
            return json.loads(line)

        def ask(work: str, prefix: Path) -> Any:
            requests.write(json.dumps([work, str(prefix)]) + "\n")
            requests.flush()
            return answer()

        print(answer())
        yield ask
        requests.close()


if __name__ == "__main__":
    main()
