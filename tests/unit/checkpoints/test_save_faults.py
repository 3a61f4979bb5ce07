"""Saves, replacements and deletions through the manager, on a disk that fails at each call in turn."""

from __future__ import annotations

import errno
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
from itertools import count
from pathlib import Path

import pytest
import torch
from tests.disk import Disk, PowerCut

from foveal import faults
from foveal.checkpoints.manager import CheckpointManager
from foveal.checkpoints.retention import Newest
from foveal.checkpoints.saver import CheckpointSaver
from foveal.errors import CheckpointError

# Step and weight. The second deletes the first, the third replaces the second, the last deletes that.
SAVES = [(1, 1.0), (2, 2.0), (2, 2.5), (3, 3.0)]


class Training:
    """As a run saves: its logs first, then the checkpoint, then the old ones go."""

    def __init__(self, root, *, asynchronous):
        self.manager = CheckpointManager(root / "checkpoints")
        self.manager.remove_leftovers()
        self._saver = CheckpointSaver(self.manager, [Newest(1)], asynchronous=asynchronous)
        log = root / "metrics.jsonl"
        self._log = log.open("ab" if log.exists() else "xb", buffering=0)
        self._length = log.stat().st_size

    def save(self, step, weight):
        self._length += self._log.write(b'{"step": %d}\n' % step)
        tensors = {"model": {"weight": torch.full((3,), weight)}}
        state = {"step": step, "logs": {"metrics.jsonl": self._length}}
        self._saver.save(step, tensors, state, lambda: os.fsync(self._log.fileno()))
        self._saver.wait()


def record(root, *, asynchronous):
    """What happened on the disk, and how much of it when each save was done."""
    root.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(patch, root)
        training, done = Training(root, asynchronous=asynchronous), []
        for step, weight in SAVES:
            training.save(step, weight)
            done.append(len(disk.operations))
    return disk.operations, done


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    """That of training, with its folder."""
    root = tmp_path_factory.mktemp("trace") / "run"
    return root, *record(root, asynchronous=True)


def found(root):
    """The step and the weight of the newest checkpoint, which must not be the second choice."""
    said = []
    stored = CheckpointManager(root / "checkpoints", said.append).load()
    assert said == []
    if stored is None:
        return None
    assert (root / "metrics.jsonl").stat().st_size >= stored.state["logs"]["metrics.jsonl"]
    (weight,) = set(stored.tensors["model"]["weight"].tolist())
    return stored.state["step"], weight


def names(root):
    folder = root / "checkpoints"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


# ---- the power fails


def test_the_trace_has_every_kind_of_change_and_is_the_same_in_either_mode(trace, tmp_path):
    root, operations, done = trace
    assert {operation.kind for operation in operations} == {
        "create", "write", "fsync", "mkdir", "rename", "unlink", "rmdir"
    }  # fmt: skip
    renames = [operation for operation in operations if operation.kind == "rename"]
    renamed = [(Path(path).name, Path(new).name) for _, path, new in renames]
    assert renamed == [
        (".step-000000001.tmp", "step-000000001"),
        (".step-000000002.tmp", "step-000000002"),
        ("step-000000001", ".step-000000001.deleted"),
        ("step-000000002", ".step-000000002.replaced"),
        (".step-000000002.tmp", "step-000000002"),
        (".step-000000002.replaced", ".step-000000002.replaced.deleted"),
        (".step-000000003.tmp", "step-000000003"),
        ("step-000000002", ".step-000000002.deleted"),
    ]
    assert record(tmp_path / "run", asynchronous=False) == (
        [moved(operation, root, tmp_path / "run") for operation in operations],
        done,
    )


def moved(operation, old, new):
    kind, path, detail = operation
    change = (str(old), str(new))
    return kind, path.replace(*change), detail.replace(*change) if kind == "rename" else detail


def is_file(node):
    return isinstance(node.states[0], bytes)


def last(node):
    return len(node.states) - 1


def torn(node):
    return max(node.forced, last(node) - 1) if is_file(node) else last(node)


def anything(seed):
    generator = random.Random(seed)
    return lambda node: generator.randint(node.forced, last(node))


WHAT_REACHED_THE_DISK = {
    "only what was forced to it": lambda node: node.forced,
    "everything": last,
    "names without contents": lambda node: node.forced if is_file(node) else last(node),
    "contents without names": lambda node: last(node) if is_file(node) else node.forced,
    "half of the last write": torn,
    "one thing and another": anything(1),
    "other things": anything(2),
    "still others": anything(3),
}


@pytest.mark.parametrize("reached", WHAT_REACHED_THE_DISK.values(), ids=WHAT_REACHED_THE_DISK.keys())
def test_whenever_the_power_fails_the_old_or_the_new_checkpoint_loads(trace, tmp_path, reached):
    root, operations, done = trace
    outcomes = set()
    for length in range(len(operations) + 1):
        folder = tmp_path / str(length)
        PowerCut(root, operations[:length]).leave(folder, reached)
        finished = sum(length >= end for end in done)
        acceptable = [None, *SAVES][finished : finished + 2]
        outcome = found(folder)  # to who only reads
        assert outcome in acceptable, operations[length - 1]
        CheckpointManager(folder / "checkpoints").remove_leftovers()
        assert found(folder) == outcome
        assert all(re.fullmatch(r"step-\d{9}", name) for name in names(folder))
        outcomes.add(outcome)
    assert outcomes == {None, *SAVES}


def test_whatever_a_crash_left_is_no_obstacle_to_training_on(trace, tmp_path):
    root, operations, _ = trace
    for length in range(len(operations) + 1):
        folder = tmp_path / str(length)
        PowerCut(root, operations[:length]).leave(folder, last)
        Training(folder, asynchronous=False).save(3, 3.5)
        assert found(folder) == (3, 3.5)
        assert names(folder) == ["step-000000003"]


# ---- the disk refuses


@pytest.mark.parametrize(
    ("code", "asynchronous", "remedy"),
    [
        (errno.EIO, True, "check the disk"),
        (errno.ENOSPC, True, "free some space"),
        (errno.ENOSPC, False, "free some space"),
        (errno.EACCES, True, "allow writing"),
        (errno.EDQUOT, False, "raise your quota"),
    ],
)
def test_each_call_refused_once_loses_nothing_and_says_what_to_do(tmp_path, code, asynchronous, remedy):
    before = tmp_path / "before"
    before.mkdir()
    for step, weight in SAVES[:2]:
        Training(before, asynchronous=False).save(step, weight)
    tolerated = []
    for fail_at in count():
        root, acceptable, failure = tmp_path / str(fail_at), {SAVES[1]}, None
        shutil.copytree(before, root)
        with pytest.MonkeyPatch.context() as patch:
            disk = Disk(patch, root, fail_at=fail_at, error=code)
            training = Training(root, asynchronous=asynchronous)
            for save in SAVES[2:]:
                try:
                    training.save(*save)
                except CheckpointError as error:
                    failure = error
                    acceptable.add(save)
                    break
                acceptable = {save}
        if len(disk.operations) <= fail_at:
            break
        assert found(root) in acceptable, disk.operations[fail_at]
        if failure is None:
            tolerated.append(disk.operations[fail_at])
        else:
            assert os.strerror(code) in str(failure)
            assert remedy in str(failure), disk.operations[fail_at]
            assert "run the same command again" in str(failure)
            assert "\n" not in str(failure)
        Training(root, asynchronous=asynchronous).save(3, 3.5)
        assert found(root) == (3, 3.5)
        assert names(root) == ["step-000000003"], disk.operations[fail_at]
    assert fail_at > 45
    assert all("step-000000002.replaced" in path or kind == "fsync" for kind, path, _ in tolerated)
    assert len(tolerated) == 8  # only the deletion of what was replaced is left for another time


# ---- real processes


def in_a_child(work):
    """Do it in a process of its own; returns how that ended: 0, 1, or minus a signal."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("killed_save", [1, 2, 3])
@pytest.mark.parametrize("point", ["checkpoint write", "before rename", "after rename", "deletion"])
def test_a_kill_while_saving_leaves_the_old_or_the_new_checkpoint(tmp_path, point, killed_save):
    def train():
        training = Training(tmp_path, asynchronous=True)
        for save in SAVES[:killed_save]:
            training.save(*save)
        faults._fault = faults._Fault(f"{point}@7")
        faults.begin_step(7)
        training.save(*SAVES[killed_save])

    assert in_a_child(train) == -signal.SIGKILL
    is_there = point in ("after rename", "deletion")
    assert found(tmp_path) == SAVES[killed_save if is_there else killed_save - 1]
    if point == "deletion":  # in the middle of it
        (doomed,) = (tmp_path / "checkpoints").glob(".*.deleted")
        assert 0 < len(list(doomed.iterdir())) < 3
    Training(tmp_path, asynchronous=True).save(4, 4.0)
    assert found(tmp_path) == (4, 4.0)
    assert names(tmp_path) == ["step-000000004"]


def test_a_limit_that_the_system_sets_ends_in_the_named_error(tmp_path):
    def train():
        training = Training(tmp_path, asynchronous=True)
        training.save(*SAVES[0])
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
        with pytest.raises(
            CheckpointError, match=r"File too large.*allow larger files .* same command again"
        ):
            training.save(*SAVES[1])

    assert in_a_child(train) == 0
    assert found(tmp_path) == SAVES[0]
    assert names(tmp_path) == ["step-000000001"]


PROGRAM = """
import pathlib, sys, threading, time, torch
from foveal.checkpoints.manager import CheckpointManager
from foveal.checkpoints.retention import Newest
from foveal.checkpoints.saver import CheckpointSaver

begun = threading.Event()

def sync_logs():
    begun.set()
    time.sleep(0.5)  # a slow disk

saver = CheckpointSaver(CheckpointManager(pathlib.Path(sys.argv[1])), [Newest(1)], asynchronous=True)
saver.save(1, {"model": {"weight": torch.ones(1000)}}, {"step": 1}, sync_logs)
begun.wait()
raise RuntimeError("training failed")
"""


def test_a_program_that_fails_finishes_the_save_in_flight_before_it_ends(tmp_path):
    command = [sys.executable, "-c", PROGRAM, tmp_path / "checkpoints"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert ended.returncode == 1
    assert ended.stderr.rstrip().endswith("RuntimeError: training failed")
    assert names(tmp_path) == ["step-000000001"]
    assert CheckpointManager(tmp_path / "checkpoints").load().state == {"step": 1}
