from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SCRIPTS = sorted({*BENCHMARKS.glob("*.py"), *BENCHMARKS.glob("peers/*.py")})


def run(script, *arguments):
    command = [sys.executable, str(BENCHMARKS / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_every_script_can_be_compiled(path):
    compile(path.read_text(encoding="utf-8"), path, "exec")


@pytest.mark.parametrize(
    "script",
    [
        "train_step.py",
        "time_to_accuracy.py",
        "input_pipeline.py",
        "foveal_input.py",
        "checkpoint.py",
        "tensorflow_files.py",
        "transfer.py",
        "folder.py",
        "inception.py",
        "peers/torch_input.py",
    ],
)
def test_what_needs_no_other_environment_explains_itself(script):
    result = run(script, "--help")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("usage: ")


def test_tensorflows_files_are_measured_without_tensorflow_too(tmp_path):
    shapes = tmp_path / "shapes.json"
    shapes.write_text('{"conv/weights": [3, 3, 8, 16]}')
    result = run("tensorflow_files.py", "--shapes", shapes, "--variables", "50", "--rounds", "1")
    assert result.returncode == 0, result.stderr
    assert "a checkpoint of 50 variables is opened and listed in" in result.stdout.splitlines()[-1]


@pytest.fixture
def module(monkeypatch):
    """Imports a script as it stands in its folder."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


def test_a_rate_counts_the_rows_of_whole_batches_after_the_warm_up(module, monkeypatch):
    measurement = module("peers.measurement")
    seconds = iter(range(1000))  # every look at the clock is a second later
    monkeypatch.setattr(measurement, "time", SimpleNamespace(perf_counter=lambda: next(seconds)))
    taken = []

    def batches():
        while True:
            taken.append(1)
            yield np.zeros((8, 3), np.float32), None

    result = measurement.examples_per_second(batches(), seconds=4, warm_up=3)
    assert result == {"examples_per_second": 8.0, "shape": [8, 3], "dtype": "float32"}
    assert len(taken) == 2 + 4


class TestInputPipeline:
    def test_compares_where_a_peer_has_an_environment_and_names_those_that_have_none(self, tmp_path):
        python = tmp_path / "tensorflow" / "bin" / "python"
        python.parent.mkdir(parents=True)
        answer = {"examples_per_second": 10.0, "shape": [128, 4], "dtype": "float32", "version": "Peer 1"}
        python.write_text(f"#!/bin/sh\necho '{json.dumps(answer)}'\n", encoding="utf-8")
        python.chmod(0o755)
        arguments = ["--works", "numbers", "--records", 300, "--rounds", 1, "--seconds", 0.1, "--warm-up", 0]
        compared = run("input_pipeline.py", *arguments, "--environments", tmp_path)
        assert compared.returncode == 0, compared.stderr
        assert "Peer 1" in compared.stdout
        assert any(line.startswith("tf.data") and line.endswith("x") for line in compared.stdout.splitlines())
        alone = run("input_pipeline.py", *arguments)
        assert alone.stdout.splitlines()[-1] == "left out, as they have no environment: tensorflow"

    def test_stops_where_a_contender_did_other_work(self, module):
        work = module("input_pipeline").WORKS["cifar"]
        result = {"shape": [128, 3, 24, 24], "dtype": "torch.float32"}
        work.check(work.contenders[0], result)
        with pytest.raises(SystemExit, match=r"torch\.uint8"):
            work.check(work.contenders[0], {**result, "dtype": "torch.uint8"})
        with pytest.raises(SystemExit, match="32"):
            work.check(work.contenders[0], {**result, "shape": [128, 3, 32, 32]})


@pytest.mark.skipif(os.name != "posix", reason="a shell script")
def test_the_script_that_makes_environments_knows_its_peers(tmp_path):
    script = BENCHMARKS / "peers" / "make_environments.sh"
    result = subprocess.run(
        ["sh", str(script), str(tmp_path), "caffe"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert "no peer is called caffe" in result.stderr
