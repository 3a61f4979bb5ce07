"""Running commands, and files that they are given."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from foveal.cli import app


@dataclass(frozen=True)
class Outcome:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def document(self):
        """Standard output, which must be one JSON document."""
        return json.loads(self.out)

    def succeeded(self):
        assert (self.code, "error" in self.err) == (0, False), self
        return self

    def refused(self, code, *words, after=False):
        """It ended with ``code`` and one line of explanation that has ``words``; returns that line.

        ``after``: other lines may stand before it.
        """
        assert self.code == code, self
        assert self.out == "", self
        assert "Traceback" not in self.err, self
        lines = self.err.splitlines()
        assert [line for line in lines if line.startswith("error: ")] == lines[-1:], self
        assert after or len(lines) == 1, self
        assert "a mistake in foveal" not in lines[-1], self
        missing = [word for word in words if word not in lines[-1]]
        assert not missing, (missing, lines[-1])
        return lines[-1]


@pytest.fixture(autouse=True)
def _work_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def foveal(capfd, monkeypatch):
    """Call the command line in this process: ``foveal("train", "digits")``."""

    def run(*arguments):
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        monkeypatch.setattr(sys, "argv", ["foveal", *map(str, arguments)])
        capfd.readouterr()
        try:
            with pytest.raises(SystemExit) as ended:
                app.main()
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        out, err = capfd.readouterr()
        return Outcome(ended.value.code or 0, out, err)

    return run


@pytest.fixture(scope="session")
def program():
    """The installed script."""
    path = Path(sys.executable).with_name("foveal")
    if not path.exists():
        pytest.skip(f"{path} is not there: install foveal into this environment")
    return str(path)


@pytest.fixture
def start(program, tmp_path):
    """Start a command in a process of its own; what still runs at the end of the test is killed."""
    processes = []

    def begin(*arguments, **options):
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        process = subprocess.Popen([program, *map(str, arguments)], cwd=tmp_path, env=environment, **options)
        processes.append(process)
        return process

    yield begin
    for process in processes:
        if process.poll() is None:
            process.kill()
            process.wait()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


@pytest.fixture
def run_copy(trained_run, tmp_path):
    """A copy of the trained run, to damage."""
    return Path(shutil.copytree(trained_run, tmp_path / "run"))


@pytest.fixture
def retrain(foveal, tiny, run_copy):
    """The command that trained ``run_copy``, again, with more arguments."""
    return lambda *arguments: foveal("train", tiny, "--run", run_copy, *arguments)


@pytest.fixture(scope="session")
def snapshot():
    """The contents of all files below a folder, and its folders; what locks leave does not count."""

    def take(folder):
        return {
            str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            if path.is_file()
            else None
            for path in sorted(Path(folder).rglob("*"))
            if path.name != ".lock"
        }

    return take


@pytest.fixture(scope="session")
def write_idx():
    """Write an array as an IDX file."""

    def write(path, array):
        sizes = np.array(array.shape, ">u4").tobytes()
        path.write_bytes(bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes())

    return write


@pytest.fixture(scope="session")
def write_mnist(write_idx):
    """Make a folder of small files such as MNIST's, of 40 and 20 random images."""

    def write(folder, seed=0, side=8):
        folder.mkdir(parents=True)
        random = np.random.default_rng(seed)
        for part, count in (("train", 40), ("t10k", 20)):
            write_idx(folder / f"{part}-images-idx3-ubyte", random.integers(0, 256, (count, side, side)))
            write_idx(folder / f"{part}-labels-idx1-ubyte", np.arange(count) % 10)
        return folder

    return write


@pytest.fixture
def mnist(write_mnist, tmp_path):
    """A folder of such files."""
    return write_mnist(tmp_path / "mnist")


@pytest.fixture(scope="session")
def mnist_arguments(tiny):
    """Trains on them: append the folder."""
    return ("train", tiny, "--steps", 2, "--set", "batch_size=10", "--set", "data.name=mnist", "--data")
