"""``foveal checkpoints``."""

from __future__ import annotations

import shutil

import pytest
import safetensors.torch
import torch

from foveal.checkpoints.layout import write_checkpoint
from foveal.checkpoints.manager import CheckpointManager
from foveal.cli.output import printable, size


@pytest.fixture
def checkpoint(run_copy):
    return lambda step: run_copy / "checkpoints" / f"step-{step:09d}"


@pytest.fixture
def bare(tmp_path):
    def write(name, **tensors):
        path = tmp_path / f"{name}.safetensors"
        safetensors.torch.save_file({key: torch.tensor(value) for key, value in tensors.items()}, path)
        return path

    return write


def flip_last_bit(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


class TestList:
    def test_shows_step_age_size_metrics_and_why_each_is_kept(self, foveal, run_copy):
        foveal("checkpoints", "keep", run_copy, 20).succeeded()
        outcome = foveal("checkpoints", "list", run_copy).succeeded()
        header, first, second, third = outcome.out.splitlines()
        assert header.split() == ["step", "age", "size", "validation", "kept", "as"]
        assert first.split()[0] == "20"
        assert first.endswith("one of the last 3, kept by name")
        assert second.endswith("one of the last 3")
        assert "accuracy 0." in third
        assert third.endswith("one of the last 3, the best by accuracy")

    def test_in_json(self, foveal, run_copy):
        document = foveal("checkpoints", "list", run_copy, "--json").succeeded().document
        assert document["run"] == str(run_copy)
        assert [each["step"] for each in document["checkpoints"]] == [20, 30, 40]
        last = document["checkpoints"][-1]
        assert last["kept"] == ["one of the last 3", "the best by accuracy"]
        assert last["nbytes"] > 1000
        assert 0 <= last["age"] < 3600
        assert 0 < last["metrics"]["accuracy"] <= 1

    def test_names_damaged_ones_here_and_moved_away(self, foveal, run_copy, checkpoint):
        flip_last_bit(checkpoint(40) / "model.safetensors")
        foveal("evaluate", run_copy)
        (checkpoint(30) / "state.json").write_bytes(b"{}")
        _, good, bad, moved = foveal("checkpoints", "list", run_copy).succeeded().out.splitlines()
        assert "one of the last 3" in good
        assert f"DAMAGED: {checkpoint(30) / 'state.json'}" in bad
        assert moved == f"damaged, in {run_copy / 'checkpoints' / 'damaged'}: step-000000040"

    def test_of_a_run_without_checkpoints(self, foveal, run_copy):
        shutil.rmtree(run_copy / "checkpoints")
        assert foveal("checkpoints", "list", run_copy).succeeded().out == "no checkpoint yet\n"


class TestShow:
    def test_describes_tensors_of_the_latest_checkpoint_of_a_run(self, foveal, run_copy, checkpoint):
        outcome = foveal("checkpoints", "show", run_copy).succeeded()
        header, *rows, total = outcome.out.splitlines()
        assert header.split()[:4] == ["tensor", "dtype", "shape", "mean"]
        assert {row.split("/")[0] for row in rows} == {"model", "ema", "optimizer"}
        assert total.startswith(f"{checkpoint(40)}: {len(rows)} tensors, ")
        document = foveal("checkpoints", "show", checkpoint(40), "--json").succeeded().document
        assert len(document["tensors"]) == len(rows)
        assert document["elements"] == sum(each["elements"] for each in document["tensors"])

    def test_prints_values_of_those_that_match(self, foveal, bare):
        path = bare("x", a=[0.5, 1.5], b=list(range(3000)))
        outcome = foveal("checkpoints", "show", path, "--filter", "^a$", "--values").succeeded()
        assert outcome.out.endswith("a =\n[0.5 1.5]\n" + f"{path}: 1 tensors, 2 numbers, 8 bytes\n")
        outcome = foveal("checkpoints", "show", path, "--values").succeeded()
        assert "[   0    1    2 ... 2997 2998 2999]" in outcome.out

    def test_lets_no_control_character_through(self, foveal, tmp_path):
        name = "\x1b]0;owned\x07\n\u202e"
        write_checkpoint(tmp_path / "x", {"model": {name: torch.ones(1)}}, {})
        for arguments in (["show", tmp_path / "x", "--values"], ["diff", tmp_path / "x", tmp_path / "y"]):
            if "diff" in arguments:
                write_checkpoint(tmp_path / "y", {"model": {name: torch.zeros(1)}}, {})
            out = foveal("checkpoints", *arguments).out
            assert "owned" in out
            assert all(letter.isprintable() for letter in out.replace("\n", ""))

    @pytest.mark.parametrize(
        ("arguments", "code", "words"),
        [
            (["nothing"], 1, ["nothing", "there is nothing"]),
            (["x.safetensors", "--filter", "("], 2, ["'('", "regular expression"]),
            (["x.safetensors", "--filter", "zzz"], 2, ["'zzz'", "no tensor"]),
            (["."], 1, ["neither a checkpoint nor a run"]),
        ],
    )
    def test_refuses_what_cannot_be_shown(self, foveal, bare, arguments, code, words):
        bare("x", a=[1.0])
        foveal("checkpoints", "show", *arguments).refused(code, *words)

    def test_names_what_is_damaged_and_moves_nothing(self, foveal, run_copy, checkpoint, snapshot):
        flip_last_bit(checkpoint(40) / "ema.safetensors")
        before = snapshot(run_copy)
        foveal("checkpoints", "show", run_copy).refused(1, str(checkpoint(40) / "ema.safetensors"))
        assert snapshot(run_copy) == before


class TestDiff:
    def test_is_silent_about_equal_ones(self, foveal, checkpoint):
        outcome = foveal("checkpoints", "diff", checkpoint(30), checkpoint(30)).succeeded()
        assert outcome.out.endswith("tensors are equal, 0 differ\n")

    def test_exits_with_1_where_they_differ(self, foveal, run_copy, checkpoint):
        outcome = foveal("checkpoints", "diff", checkpoint(30), run_copy, "--filter", "model/")
        assert (outcome.code, outcome.err) == (1, "")
        assert "model/" in outcome.out
        assert outcome.out.splitlines()[-1].startswith("0 tensors are equal")

    def test_says_by_how_much(self, foveal, bare):
        a, b = bare("a", x=[1.0, 2.0], y=[1.0], s=[1.0]), bare("b", x=[1.0, 3.0], z=[1.0], s=[1, 2])
        outcome = foveal("checkpoints", "diff", a, b)
        rows = [line.split() for line in outcome.out.splitlines()[1:-1]]
        assert ["x", "values", "1", "1", "0.3333"] in rows
        assert ["y", "only", "in", "the", "first", "-", "-", "-"] in rows
        assert "float32 [1] / int64 [2]" in outcome.out
        document = foveal("checkpoints", "diff", a, b, "--json").document
        assert document["equal"] == 0
        assert {each["name"]: each["elements"] for each in document["differences"]}["x"] == 1

    def test_compares_a_file_with_a_checkpoints_weights(self, foveal, checkpoint):
        weights = checkpoint(30) / "model.safetensors"
        foveal("checkpoints", "diff", weights, checkpoint(30)).succeeded()


class TestAverage:
    def test_writes_a_file_that_can_be_looked_into(self, foveal, checkpoint):
        out = foveal("checkpoints", "average", checkpoint(30), checkpoint(40), "--out", "mean.safetensors")
        assert "the mean of 2" in out.succeeded().out
        a, b = (safetensors.torch.load_file(checkpoint(step) / "model.safetensors") for step in (30, 40))
        mean = safetensors.torch.load_file("mean.safetensors")
        for name, tensor in mean.items():
            if tensor.is_floating_point():
                assert torch.equal(tensor, ((a[name].double() + b[name].double()) / 2).to(tensor.dtype))
        foveal("checkpoints", "show", "mean.safetensors").succeeded()

    def test_says_which_integers_were_taken_from_the_last(self, foveal, bare):
        a, b = bare("a", n=1, w=0.0), bare("b", n=2, w=1.0)
        outcome = foveal("checkpoints", "average", a, b, "--out", "m.safetensors").succeeded()
        assert f"n: has no mean and differs: taken from {b}" in outcome.out
        document = foveal("checkpoints", "average", a, b, "--out", "k.safetensors", "--json").document
        assert (document["averaged"], document["last"]) == (1, ["n"])

    def test_refuses_wrong_input_with_one_line(self, foveal, bare):
        a, b = bare("a", w=0.0), bare("b", w=[1.0])
        foveal("checkpoints", "average", a, "--out", "m.safetensors").refused(2, "at least two")
        foveal("checkpoints", "average", a, b, "--out", "m.safetensors").refused(1, "'w'", "float32 [1]")
        foveal("checkpoints", "average", a, a, "--out", a).refused(1, str(a), "exists already")
        foveal("checkpoints", "average", a, a, "--out", "m.pt").refused(2, ".safetensors")


class TestVerify:
    def test_says_of_each_that_it_is_good(self, foveal, run_copy, checkpoint):
        outcome = foveal("checkpoints", "verify", run_copy).succeeded()
        assert outcome.out == "".join(f"{checkpoint(step)}: good\n" for step in (20, 30, 40))

    def test_names_what_is_damaged_exits_with_1_and_moves_nothing(
        self, foveal, run_copy, checkpoint, snapshot
    ):
        flip_last_bit(checkpoint(30) / "optimizer.safetensors")
        before = snapshot(run_copy)
        outcome = foveal("checkpoints", "verify", run_copy)
        assert outcome.code == 1
        assert str(checkpoint(30) / "optimizer.safetensors") in outcome.out
        assert outcome.out.count(": good\n") == 2
        document = foveal("checkpoints", "verify", checkpoint(30), "--json").document
        assert "optimizer.safetensors" in document["checkpoints"][0]["problem"]
        assert snapshot(run_copy) == before


class TestKeep:
    def test_keeps_a_checkpoint_through_training_until_it_is_released(self, foveal, run_copy, retrain):
        foveal("checkpoints", "keep", run_copy, 20).succeeded()
        retrain("--steps", 80).succeeded()
        manager = CheckpointManager(run_copy / "checkpoints")
        assert 20 in manager.steps()
        assert 30 not in manager.steps()
        outcome = foveal("checkpoints", "keep", run_copy, 20, "--release", "--json").succeeded()
        assert outcome.document == {"run": str(run_copy), "step": 20, "kept_by_name": []}
        retrain("--steps", 90).succeeded()
        assert 20 not in manager.steps()

    def test_refuses_what_is_not_there(self, foveal, run_copy):
        foveal("checkpoints", "keep", run_copy, 25).refused(1, "no checkpoint of step 25", "20, 30, 40")
        foveal("checkpoints", "keep", run_copy, 20, "--release").refused(1, "not kept by name")
        foveal("checkpoints", "keep", "nowhere", 20).refused(1, "nowhere", "not a run folder")
        foveal("checkpoints", "keep", run_copy, "best").refused(2, "STEP")
        foveal("checkpoints", "keep", run_copy, -1).refused(2)


def test_sizes_and_names_are_written_for_people():
    assert [size(n) for n in (0, 999, 1000, 1_500_000, 999_600_000)] == [
        "0 bytes",
        "999 bytes",
        "1 kB",
        "1.5 MB",
        "1 GB",
    ]
    assert [printable("conv1.weight ü"), printable("a\x1bb")] == ["conv1.weight ü", "'a\\x1bb'"]
