from __future__ import annotations

import os
import signal
import threading
import traceback

import pytest
import torch

from foveal.checkpoints.manager import CheckpointManager
from foveal.checkpoints.retention import Newest
from foveal.checkpoints.saver import CheckpointSaver, check_space, stored_size
from foveal.errors import CheckpointError


def tensors(value=1.0):
    return {"model": {"weight": torch.full((3, 4), value), "steps": torch.tensor(7)}, "optimizer": {}}


def nothing():
    pass


def state(step):
    return {"step": step}


@pytest.fixture
def manager(tmp_path):
    return CheckpointManager(tmp_path / "checkpoints")


@pytest.fixture
def saver(manager):
    saver = CheckpointSaver(manager, [Newest(2)], asynchronous=True)
    yield saver
    saver.close()


class Gate:
    """Logs whose syncing takes until the gate is opened: it holds the writing thread."""

    def __init__(self):
        self._open = threading.Event()
        self.reached = threading.Event()

    def __call__(self):
        self.reached.set()
        assert self._open.wait(30)

    def open(self):
        self._open.set()


def weight(manager, step):
    return manager.load(step).tensors["model"]["weight"]


# ---- what is saved


def test_what_is_saved_is_the_state_at_the_call_whatever_training_does_meanwhile(manager, saver):
    live, logs, gate = tensors(), {"step": 1, "logs": {"metrics.jsonl": 10}}, Gate()
    saver.save(1, live, logs, gate)
    live["model"]["weight"].zero_()
    live["model"]["steps"].add_(1)
    live["model"]["more"] = torch.zeros(2)
    logs["logs"]["metrics.jsonl"] = 99
    gate.open()
    saver.wait()
    read = manager.load(1)
    assert read.state == {"step": 1, "logs": {"metrics.jsonl": 10}}
    assert read.tensors["model"].keys() == {"weight", "steps"}
    assert torch.equal(read.tensors["model"]["weight"], torch.ones(3, 4))
    assert read.tensors["model"]["steps"] == 7
    assert read.tensors["optimizer"] == {}


def test_saving_returns_before_anything_is_written_and_waiting_after_all_of_it(manager, saver):
    gate = Gate()
    saver.save(1, tensors(), state(1), gate)
    assert gate.reached.wait(30)
    assert manager.steps() == []  # the logs are on the disk before the checkpoint that counts on them
    gate.open()
    saver.wait()
    assert manager.steps() == [1]


def test_synchronous_saving_is_done_in_the_calling_thread_and_without_a_copy(manager):
    seen = []

    class Spy(CheckpointManager):
        def save(self, step, tensors, state):
            seen.append((threading.current_thread(), tensors["model"]["weight"]))
            super().save(step, tensors, state)

    live = tensors()
    saver = CheckpointSaver(Spy(manager.folder), [Newest(1)], asynchronous=False)
    saver.save(1, live, state(1), lambda: seen.append("logs"))
    saver.save(2, live, state(2), nothing)
    assert seen[0] == "logs"
    assert seen[1][0] is threading.main_thread()
    assert seen[1][1] is live["model"]["weight"]
    assert manager.steps() == [2]


def test_old_checkpoints_go_when_the_new_one_is_there(manager, saver):
    for step in range(1, 5):
        saver.save(step, tensors(step), state(step), nothing)
    saver.wait()
    assert manager.steps() == [3, 4]


def test_saving_a_step_again_replaces_it(manager, saver):
    saver.save(1, tensors(1.0), state(1), nothing)
    saver.save(1, tensors(2.0), state(1), nothing)
    saver.wait()
    assert torch.equal(weight(manager, 1), torch.full((3, 4), 2.0))
    assert [path.name for path in manager.folder.iterdir()] == ["step-000000001"]


def test_tensors_of_every_form_are_saved(manager, saver):
    base = torch.arange(24.0).view(2, 3, 4)
    forms = {
        "plain": base,
        "transposed": base.permute(2, 0, 1),
        "every second": base[:, :, ::2],
        "channels last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "expanded": torch.ones(1, 3).expand(5, 3),
        "shared": base,
        "a part of it": base[1],
        "number": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "learnt": torch.nn.Parameter(torch.ones(3)),
        "conjugate": torch.randn(3, dtype=torch.complex64).conj(),
        "negated": torch.randn(3, dtype=torch.complex64).conj().imag,
        "half": torch.ones(3, dtype=torch.bfloat16),
        "flags": torch.tensor([True, False]),
    }
    for step in (1, 2):  # into new memory, and into that of the first
        saver.save(step, {"model": forms}, state(step), nothing)
        saver.wait()
        read = manager.load(step).tensors["model"]
        assert read.keys() == forms.keys()
        for name, tensor in forms.items():
            assert read[name].dtype == tensor.dtype
            assert torch.equal(read[name], tensor.detach()), name


def test_shapes_types_and_names_may_change_from_save_to_save(manager, saver):
    versions = [
        {"model": {"a": torch.ones(2, 3), "b": torch.zeros(1)}},
        {"model": {"a": torch.full((3, 2), 5.0)}, "ema": {"a": torch.ones(1)}},
        {"model": {"a": torch.full((3, 2), 6, dtype=torch.int32)}},
    ]
    for step, version in enumerate(versions):
        saver.save(step, version, state(step), nothing)
        saver.wait()
        read = manager.load(step).tensors
        assert {part: content.keys() for part, content in read.items()} == {
            part: content.keys() for part, content in version.items()
        }
        assert read["model"]["a"].dtype == version["model"]["a"].dtype
        assert torch.equal(read["model"]["a"], version["model"]["a"])


def test_order_in_memory_may_change_from_save_to_save(manager, saver):
    plain = torch.randn(2, 3, 4, 5)
    for step, tensor in enumerate(
        (plain, plain.contiguous(memory_format=torch.channels_last), plain.clone())
    ):
        saver.save(step, {"model": {"a": tensor}}, state(step), nothing)
        saver.wait()
        assert torch.equal(manager.load(step).tensors["model"]["a"], plain)


def test_large_tensors_are_copied_piece_by_piece_and_written_as_the_disk_takes_them(manager, saver):
    large = {"a": torch.randn(5_000_001), "b": torch.randn(1000, 1500).t(), "c": torch.randn(3)}
    saver.save(1, {"model": large}, state(1), nothing)
    saver.wait()
    read = manager.load(1).tensors["model"]
    assert all(torch.equal(read[name], tensor) for name, tensor in large.items())


def test_memory_for_the_copies_is_taken_once(manager):
    places = []

    class Spy(CheckpointManager):
        def save(self, step, tensors, state):
            places.append([tensor.data_ptr() for tensor in tensors["model"].values()])
            super().save(step, tensors, state)

    saver, live = CheckpointSaver(Spy(manager.folder), [Newest(1)], asynchronous=True), tensors()
    for step in range(3):
        saver.save(step, live, state(step), nothing)
    saver.close()
    assert places[0] == places[1] == places[2]
    assert not set(places[0]) & {tensor.data_ptr() for tensor in live["model"].values()}


@pytest.mark.parametrize("bad", [torch.zeros(1, device="meta"), torch.eye(3).to_sparse()])
def test_tensor_that_cannot_be_stored_is_named(manager, saver, bad):
    saver.save(1, {"model": {"bad": bad}}, state(1), nothing)
    with pytest.raises(CheckpointError, match="'bad'"):
        saver.wait()
    assert manager.steps() == []


# ---- failures


def fail_logs():
    raise OSError(28, "No space left on device", "metrics.jsonl")


def until_written(saver):
    """Wait without asking for the outcome."""
    assert saver._written.wait(30)


def test_failure_is_raised_once_by_the_next_check_with_the_traceback_of_the_writer(manager, saver):
    saver.save(1, tensors(), state(1), nothing)
    gate = Gate()

    def slow_and_full():
        gate()
        fail_logs()

    saver.save(2, tensors(), state(2), slow_and_full)
    saver.check()  # still being written: nothing is known
    gate.open()
    until_written(saver)
    with pytest.raises(CheckpointError, match=r"cannot write metrics\.jsonl .*free some space") as caught:
        saver.check()
    frames = {frame.name for frame in traceback.extract_tb(caught.value.__traceback__)}
    assert {"_run", "_write"} <= frames
    saver.check()
    saver.wait()
    saver.close()
    assert manager.steps() == [1]
    saver.save(2, tensors(), state(2), nothing)  # the disk has room again
    saver.wait()
    assert manager.steps() == [1, 2]


def test_failure_is_raised_by_the_next_save_which_writes_nothing(manager, saver):
    saver.save(1, tensors(), state(1), fail_logs)
    with pytest.raises(CheckpointError, match="No space left"):
        saver.save(2, tensors(), state(2), nothing)
    saver.wait()
    assert manager.steps() == []


def test_failure_is_raised_by_close(saver):
    saver.save(1, tensors(), state(1), fail_logs)
    with pytest.raises(CheckpointError, match="No space left"):
        saver.close()
    saver.close()


def test_close_adds_to_an_exception_under_way_and_does_not_replace_it(saver):
    def interrupted():
        try:
            saver.save(1, tensors(), state(1), fail_logs)
            raise KeyboardInterrupt
        finally:
            saver.close()

    with pytest.raises(KeyboardInterrupt) as caught:
        interrupted()
    assert ["No space left" in note for note in caught.value.__notes__] == [True]


def test_interrupted_waiting_leaves_the_write_going_and_close_waits_for_it(manager, saver):
    gate = Gate()
    saver.save(1, tensors(), state(1), gate)
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        saver.wait()
    assert manager.steps() == []
    threading.Timer(0.2, gate.open).start()
    saver.close()
    assert manager.steps() == [1]


def test_synchronous_failure_is_raised_at_once(manager):
    saver = CheckpointSaver(manager, [], asynchronous=False)
    with pytest.raises(CheckpointError, match="free some space"):
        saver.save(1, tensors(), state(1), fail_logs)
    saver.check()


def test_one_write_is_in_flight_at_most(manager, saver):
    gate, order = Gate(), []
    saver.save(1, tensors(), state(1), gate)
    opener = threading.Timer(0.2, lambda: (order.append("first may go on"), gate.open()))
    opener.start()
    saver.save(2, tensors(), state(2), lambda: order.append(manager.steps()))
    saver.wait()
    assert order == ["first may go on", [1]]


def test_state_that_cannot_be_stored_ends_in_the_named_error(saver):
    saver.save(1, tensors(), {"loss": float("nan")}, nothing)
    with pytest.raises(CheckpointError, match="loss is nan"):
        saver.wait()


def test_no_room_is_found_before_anything_is_written_or_copied(manager, saver):
    huge = {"model": {"weight": torch.zeros(1).expand(1 << 50)}}
    with pytest.raises(CheckpointError, match=r"takes 4,503,599,627\.4 MB and the disk has .* free some"):
        saver.save(1, huge, state(1), nothing)
    assert not manager.folder.exists()


def test_room_is_checked_for_folders_that_are_still_to_be_made(tmp_path):
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    check_space(tmp_path / "runs" / "x", 1000)
    with pytest.raises(CheckpointError, match=r"runs/x: a checkpoint takes .* run the same command again"):
        check_space(tmp_path / "runs" / "x", free * 2)


def test_size_is_known_before(manager, saver):
    live = {"model": {f"layer{index}.weight": torch.randn(40, 50) for index in range(100)}}
    saver.save(1, live, state(1), nothing)
    saver.wait()
    written = sum(path.stat().st_size for path in manager.path(1).iterdir())
    assert written <= stored_size(live) <= 1.05 * written
