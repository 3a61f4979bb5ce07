"""What is found to differ between two runs, and how it is said."""

from __future__ import annotations

import itertools
import json
import shutil

import pytest
import torch

from foveal.checkpoints.layout import read_checkpoint, write_checkpoint
from foveal.errors import DamagedCheckpointError
from foveal.reproducibility.comparison import (
    compare_checkpoints,
    compare_logs,
    compare_runs,
    compare_states,
    compare_tensors,
    read_log,
)
from foveal.training.metrics import RunLog


class TestTensors:
    @pytest.mark.parametrize(
        "tensor",
        [
            torch.tensor([1.0, float("nan"), -0.0]),
            torch.tensor(3.5, dtype=torch.bfloat16),
            torch.tensor([[True], [False]]),
            torch.tensor([1 + 2j]),
            torch.arange(6).view(2, 3).t(),
            torch.empty(0, 4),
        ],
        ids=lambda tensor: f"{tensor.dtype} {list(tensor.shape)}",
    )
    def test_of_the_same_bits_are_equal(self, tensor):
        assert compare_tensors({"a": tensor}, {"a": tensor.clone()}) == []

    def test_that_differ_are_counted_and_measured(self):
        ours = torch.zeros(20, 40)
        theirs = ours.clone()
        theirs[3, :12] = 0.25
        theirs[3, 5] = -0.5
        (line,) = compare_tensors({"conv1.weight": ours}, {"conv1.weight": theirs})
        assert line == "conv1.weight: 12 of 800 values differ, by at most 0.5"

    @pytest.mark.parametrize(
        ("ours", "theirs", "amount"),
        [
            (0.0, -0.0, "by at most 0"),
            (1.0, 1.0 + 2**-23, "by at most 1.19e-07"),
            (0.0, float("nan"), "some not finite"),
            (1.0, float("inf"), "some not finite"),
        ],
    )
    def test_that_differ_in_one_bit_are_found(self, ours, theirs, amount):
        (line,) = compare_tensors({"a": torch.tensor(ours)}, {"a": torch.tensor(theirs)})
        assert line == f"a: 1 of 1 values differ, {amount}"

    def test_of_another_shape_or_dtype_differ(self):
        ours = {"a": torch.zeros(2), "b": torch.zeros(2)}
        theirs = {"a": torch.zeros(1, 2), "b": torch.zeros(2).half()}
        assert compare_tensors(ours, theirs) == [
            "a: float32 [2] != float32 [1, 2]",
            "b: float32 [2] != float16 [2]",
        ]

    def test_that_only_one_side_has_are_named(self):
        lines = compare_tensors({"a": torch.zeros(1)}, {"b": torch.zeros(1)})
        assert lines == ["a: only in the first", "b: only in the second"]


class TestStates:
    def test_are_equal_but_for_times(self):
        state = {"step": 3, "best": None, "train_seconds": 1.5, "logs": {"metrics.jsonl": 100}}
        assert compare_states(state, state | {"train_seconds": 2.5, "logs": {}}) == []

    def test_differ_by_their_dotted_key(self):
        state = {"step": 3, "best": {"step": 2, "accuracy": 0.5}, "stale": 0}
        other = {"step": 3, "best": {"step": 2, "accuracy": 0.75}, "classes": ["a"]}
        assert compare_states(state, other) == [
            "best.accuracy 0.5 != 0.75",
            "stale 0 != nothing",
            'classes nothing != ["a"]',
        ]

    def test_tell_numbers_apart_that_compare_equal(self):
        assert compare_states({"a": 1, "b": 0.0}, {"a": 1.0, "b": -0.0}) == ["a 1 != 1.0", "b 0.0 != -0.0"]


def checkpoint(folder, **parts):
    write_checkpoint(folder, parts, {"step": 1, "train_seconds": 0.1, "stale": 0})
    return folder


class TestCheckpoints:
    def test_are_compared_part_by_part(self, tmp_path):
        ours = checkpoint(tmp_path / "a", model={"w": torch.zeros(2)}, optimizer={"s/w": torch.zeros(2)})
        theirs = checkpoint(tmp_path / "b", model={"w": torch.zeros(2)}, optimizer={"s/w": torch.ones(2)})
        assert compare_checkpoints(ours, theirs) == ["optimizer s/w: 2 of 2 values differ, by at most 1"]

    def test_without_a_part_differ(self, tmp_path):
        ours = checkpoint(tmp_path / "a", model={"w": torch.zeros(2)})
        theirs = checkpoint(tmp_path / "b", model={"w": torch.zeros(2)}, ema={"w": torch.zeros(2)})
        assert compare_checkpoints(ours, theirs) == [f"ema: only in {theirs}"]

    def test_are_verified(self, tmp_path):
        ours = checkpoint(tmp_path / "a", model={"w": torch.zeros(2)})
        theirs = checkpoint(tmp_path / "b", model={"w": torch.zeros(2)})
        path = theirs / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-1] + b"\1")
        with pytest.raises(DamagedCheckpointError):
            compare_checkpoints(ours, theirs)


@pytest.fixture
def logged(tmp_path):
    """Write the logs of a run, each at times of its own, of three steps and two evaluations."""
    clock = itertools.count(1_700_000_000.0, 0.5)

    def write(name, *, losses=(0.5, 0.25, 0.125), steps=(1, 2, 3)):
        folder = tmp_path / name
        folder.mkdir()
        log = RunLog(folder, None, clock=lambda: next(clock))
        for step, loss in zip(steps, losses, strict=True):
            log.metrics({"step": step, "loss": loss, "time": {"wall": next(clock), "data_wait": next(clock)}})
        for split in ("validation", "test"):
            log.evaluation({"step": 3, "split": split, "accuracy": 0.5, "time": {"wall": next(clock)}})
        log.corrupt({"part": "train", "key": "f record 3", "reason": "cut off"})
        log.close()
        return folder

    return write


def change(run, pattern, edit):
    (path,) = run.glob(pattern)
    path.write_bytes(edit(path.read_bytes()))


class TestLogs:
    def test_are_equal_but_for_times(self, logged):
        ours, theirs = logged("a"), logged("b")
        assert compare_logs(ours, theirs) == []
        assert (ours / "metrics.jsonl").read_bytes() != (theirs / "metrics.jsonl").read_bytes()
        assert [len(read_log(ours, name).entries) for name in ("metrics.jsonl", "evaluations.jsonl")] == [
            3,
            2,
        ]

    def test_of_another_number_differ_in_file_and_event(self, logged):
        assert compare_logs(logged("a"), logged("b", losses=(0.5, 0.375, 0.125))) == [
            "metrics.jsonl: step 2: loss 0.25 != 0.375",
            "events.out.tfevents: step 2 loss: value 0.25 != 0.375",
        ]

    def test_that_lack_a_step_differ(self, logged):
        lines = compare_logs(logged("a"), logged("b", steps=(1, 3), losses=(0.5, 0.125)))
        assert lines[0] == "metrics.jsonl: step 2 is missing in b"
        assert lines[1:] == ["events.out.tfevents: step 2 loss is missing in b"]

    def test_that_have_a_step_twice_differ_even_from_their_equal(self, logged):
        steps, losses = (1, 2, 2, 3), (0.5, 0.25, 0.25, 0.125)
        ours, theirs = (logged(name, steps=steps, losses=losses) for name in ("a", "b"))
        assert [line for line in compare_logs(ours, theirs) if line.startswith("metrics")] == [
            "metrics.jsonl of a: step 2 stands in it 2 times",
            "metrics.jsonl of b: step 2 stands in it 2 times",
        ]
        assert "events.out.tfevents of a: step 2 loss stands in it 2 times" in compare_logs(ours, theirs)

    def test_in_another_order_differ(self, logged):
        lines = compare_logs(logged("a"), logged("b", steps=(2, 1, 3), losses=(0.25, 0.5, 0.125)))
        assert lines == [
            f"{name}: its records stand in another order" for name in ("metrics.jsonl", "events.out.tfevents")
        ]

    def test_keep_the_parts_that_are_evaluated_apart(self, logged):
        ours, theirs = logged("a"), logged("b")
        change(
            ours,
            "evaluations.jsonl",
            lambda text: text.replace(b'"test", "accuracy": 0.5', b'"test", "accuracy": 0.75'),
        )
        assert compare_logs(ours, theirs) == ["evaluations.jsonl: step 3 test: accuracy 0.75 != 0.5"]

    def test_of_damaged_records_are_compared(self, logged):
        ours, theirs = logged("a"), logged("b")
        change(theirs, "corrupt.jsonl", lambda _text: b"")
        assert compare_logs(ours, theirs) == ["corrupt.jsonl: train/f record 3 is missing in b"]

    @pytest.mark.parametrize(
        ("pattern", "said"),
        [
            ("metrics.jsonl", "metrics.jsonl of a: line 3 is cut off"),
            ("events.*", "cut off in its footer, after 3 of 4 bytes"),
        ],
    )
    def test_that_end_in_half_a_record_differ(self, logged, pattern, said):
        ours, theirs = logged("a"), logged("b")
        change(ours, pattern, lambda content: content[:-1])
        assert said in compare_logs(ours, theirs)[0]

    @pytest.mark.parametrize("line", [b"[]", b"{", b'{"step": "1"}', b'{"step": 1, "step": 2}', b"\xff"])
    def test_with_a_line_that_is_no_record_differ(self, logged, line):
        ours, theirs = logged("a"), logged("b")
        change(ours, "metrics.jsonl", lambda text: line + b"\n" + text)
        assert compare_logs(ours, theirs)[0].startswith("metrics.jsonl of a: ")

    def test_until_a_step_leave_out_what_is_later_and_what_is_half_written(self, logged):
        ours = logged("a", losses=(0.5, 0.25, 9.0))
        theirs = logged("b")
        change(ours, "metrics.jsonl", lambda content: content[:-1])
        change(ours, "corrupt.jsonl", lambda _content: b"")
        assert compare_logs(ours, theirs, until=2) == []
        assert compare_logs(ours, theirs, until=3) == [
            "metrics.jsonl: step 3 is missing in a",
            "events.out.tfevents: step 3 loss: value 9.0 != 0.125",
        ]

    def test_that_are_not_there_are_empty(self, logged, tmp_path):
        (tmp_path / "none").mkdir()
        lines = compare_logs(tmp_path / "none", logged("b"))
        assert len([line for line in lines if line.endswith("is missing in none")]) == len(lines) == 12


class TestRuns:
    def test_are_identical_to_their_copies(self, trained_run, tmp_path):
        copy = shutil.copytree(trained_run, tmp_path / "copy")
        comparison = compare_runs(copy, trained_run)
        assert comparison.differences == ()
        assert comparison.compared["tensors"] > 30
        assert comparison.compared["records of metrics.jsonl"] == 5

    def test_that_lost_a_checkpoint_differ(self, trained_run, tmp_path):
        copy = shutil.copytree(trained_run, tmp_path / "copy")
        shutil.rmtree(copy / "checkpoints" / "step-000000020")
        assert compare_runs(copy, trained_run).differences == ("checkpoint of step 20: missing in copy",)

    def test_that_did_not_come_to_the_same_end_differ(self, trained_run, tmp_path):
        copy = shutil.copytree(trained_run, tmp_path / "copy")
        shutil.rmtree(copy / "checkpoints" / "step-000000040")
        assert compare_runs(copy, trained_run).differences[0] == (
            "the last checkpoint: step 30 in copy, step 40 in run"
        )

    def test_that_keep_more_are_identical_all_the_same(self, trained_run, tmp_path):
        copy = shutil.copytree(trained_run, tmp_path / "copy")
        shutil.copytree(copy / "checkpoints" / "step-000000020", copy / "checkpoints" / "step-000000010")
        assert compare_runs(copy, trained_run).differences == ()

    def test_with_another_state_differ(self, trained_run, tmp_path):
        copy = shutil.copytree(trained_run, tmp_path / "copy")
        folder = copy / "checkpoints" / "step-000000040"
        state = json.loads((folder / "state.json").read_text())
        tensors = read_checkpoint(folder).tensors
        shutil.rmtree(folder)
        write_checkpoint(folder, tensors, state | {"step": 41})
        assert compare_runs(copy, trained_run).differences == ("checkpoint of step 40: state: step 41 != 40",)
