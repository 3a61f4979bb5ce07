"""A save that dies, or is refused, at each of its operations on the file system in turn."""

from __future__ import annotations

import errno
import io
import os
import shutil
from pathlib import Path

import pytest
import torch

from foveal.checkpoints.layout import read_checkpoint, write_checkpoint
from foveal.errors import CheckpointError

STATE = {"step": 2}
TENSORS = {
    "model": {"weight": torch.arange(4.0), "bias": torch.ones(1)},
    "ema": {"weight": torch.zeros(4)},
    "optimizer": {},
}
EARLIER = {"model": {"weight": torch.full((4,), 7.0)}}


class Died(BaseException):
    """The process was killed: what stands on the disk now is all there will be."""


class Disk:
    """Records every operation that changes the disk, and lets one of them fail."""

    def __init__(self, patch, *, fail_at=None, error=None):
        self.operations, self.fail_at, self.error = [], fail_at, error
        self.dead = False
        self._open = io.open
        patch.setattr(io, "open", self.open)
        for name in ("fsync", "rename", "mkdir", "unlink", "rmdir"):
            patch.setattr(os, name, self.watched(name, getattr(os, name)))

    def step(self, name, target):
        """True if this operation is the one to fail half-way; raises if it fails outright."""
        if self.dead:  # a killed process does not clean up either
            raise Died
        self.operations.append((name, target))
        return len(self.operations) - 1 == self.fail_at

    def fail(self):
        if self.error is None:
            self.dead = True
            raise Died
        raise OSError(self.error, os.strerror(self.error))

    def watched(self, name, original):
        def call(target, *args, **kwargs):
            described = Path(f"/proc/self/fd/{target}").readlink() if name == "fsync" else target
            if self.step(name, os.fspath(described)):
                self.fail()
            return original(target, *args, **kwargs)

        return call

    def open(self, path, mode="r", *args, **kwargs):
        if "x" not in mode and "w" not in mode:
            return self._open(path, mode, *args, **kwargs)
        if self.step("create", os.fspath(path)):
            self.fail()
        return Watched(self, self._open(path, "xb", buffering=0), os.fspath(path))


class Watched:
    """A file opened for writing."""

    def __init__(self, disk, file, path):
        self.disk, self.file, self.path = disk, file, path

    def write(self, content):
        if self.disk.step("write", self.path):
            self.file.write(bytes(content)[: len(bytes(content)) // 2])  # torn
            self.disk.fail()
        return self.file.write(content)

    def flush(self):
        self.file.flush()

    def fileno(self):
        return self.file.fileno()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()


def save(folder):
    write_checkpoint(folder, TENSORS, STATE)


def is_complete(folder, tensors=TENSORS, state=STATE):
    read = read_checkpoint(folder)
    return read.state == state and all(
        torch.equal(read.tensors[part][name], tensor)
        for part, content in tensors.items()
        for name, tensor in content.items()
    )


def record(folder):
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(patch)
        save(folder)
    return disk.operations


@pytest.fixture
def checkpoints(tmp_path):
    write_checkpoint(tmp_path / "step-1", EARLIER, {"step": 1})
    return tmp_path


def earlier_is_intact(checkpoints):
    return is_complete(checkpoints / "step-1", EARLIER, {"step": 1})


def test_recorder_sees_the_whole_save(checkpoints):
    kinds = [name for name, _ in record(checkpoints / "step-2")]
    assert kinds.count("create") == 5
    assert kinds.count("fsync") == 7  # five files, the folder, its parent
    assert kinds.count("write") >= 8
    assert kinds.count("rename") == 1


def test_everything_is_synced_before_the_rename_and_the_manifest_is_last(checkpoints):
    operations = record(checkpoints / "step-2")
    temporary, final = checkpoints / ".step-2.tmp", checkpoints / "step-2"
    rename = operations.index(("rename", str(temporary)))
    assert operations[rename:] == [("rename", str(temporary)), ("fsync", str(checkpoints))]
    assert operations[rename - 1] == ("fsync", str(temporary))
    created = [path for name, path in operations if name == "create"]
    assert created[-1] == str(temporary / "manifest.json")
    for path in created:
        changes = [index for index, (_, target) in enumerate(operations) if target == path]
        assert operations[changes[-1]] == ("fsync", path)
        assert changes[-1] < rename - 1
    assert not any(target.startswith(str(final)) for _, target in operations)


def test_death_at_any_operation_leaves_no_folder_or_a_complete_one(checkpoints):
    total = len(record(checkpoints / "probe"))
    outcomes = []
    for fail_at in range(total):
        folder = checkpoints / "step-2"
        with pytest.MonkeyPatch.context() as patch:
            disk = Disk(patch, fail_at=fail_at)
            with pytest.raises(Died):
                save(folder)
        assert disk.dead
        outcomes.append(folder.exists())
        if folder.exists():
            assert is_complete(folder)
            shutil.rmtree(folder)
        save(folder)  # whatever the dead one left behind is no obstacle
        assert is_complete(folder)
        assert sorted(path.name for path in checkpoints.iterdir()) == ["probe", "step-1", "step-2"]
        shutil.rmtree(folder)
        assert earlier_is_intact(checkpoints)
    assert outcomes == [False] * (total - 1) + [True]  # only the last sync comes after the rename


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EACCES, errno.EDQUOT])
def test_each_operation_refused_once_is_named_and_leaves_nothing(checkpoints, code):
    operations = record(checkpoints / "probe")
    for fail_at, (name, target) in enumerate(operations):
        folder = checkpoints / "step-2"
        with pytest.MonkeyPatch.context() as patch:
            Disk(patch, fail_at=fail_at, error=code)
            with pytest.raises(
                CheckpointError, match=r"cannot write .*step-2.* and run the same command"
            ) as caught:
                save(folder)
        assert os.strerror(code) in str(caught.value), (name, target)
        assert "\n" not in str(caught.value)
        assert earlier_is_intact(checkpoints)
        if fail_at == len(operations) - 1:  # it had its name already: complete, and said not to be durable
            assert "may not survive a power cut" in str(caught.value)
            assert is_complete(folder)
            shutil.rmtree(folder)
        assert sorted(path.name for path in checkpoints.iterdir()) == ["probe", "step-1"]


def test_full_disk_says_to_free_some_space(checkpoints):
    with pytest.MonkeyPatch.context() as patch:
        Disk(patch, fail_at=4, error=errno.ENOSPC)
        with pytest.raises(CheckpointError, match="free some space there and run the same command again"):
            save(checkpoints / "step-2")


def test_disk_that_stays_full_still_gives_one_error(checkpoints, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for name in ("fsync", "unlink", "rmdir"):
        monkeypatch.setattr(os, name, refuse)
    with pytest.raises(CheckpointError, match="No space left"):
        save(checkpoints / "step-2")
    assert not (checkpoints / "step-2").exists()


def test_parent_that_is_a_file_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CheckpointError, match="cannot write"):
        save(tmp_path / "file" / "step-2")
